"""The reversible pair iteration of RevDEQ."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jdeq import tree
from jdeq.types import Map, Solver


class ReversibleState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    y: PyTree  # float[*batch, ...]  the other half of the pair
    steps: Int[Array, " *batch"]  # steps taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reversible(Solver):
    """The coupled pair ``y <- (1 - beta) y + beta f(z)``, then ``z <- (1 - beta) z + beta f(y)``.

    Both start at z0. Each half-step can be undone, ``y = (y - beta f(z)) / (1 - beta)``, which is
    what :class:`jdeq.ReversibleGradient` does. Where f is k-Lipschitz with k < 1 it converges for
    every beta in (0, 2 / (k + 1)), at a rate of ``|1 - beta| + beta k`` a step or better. An
    eigenvalue l of J gives the pair the roots m of ``(m + beta - 1)^2 = beta^2 l^2 m``: for real
    spectra beta > 1 is successive over-relaxation, fastest at ``2 / (1 + sqrt(1 - rho^2))``, but a
    complex spectrum makes it diverge; :func:`jdeq.propose_beta` estimates the best beta of a map.

    Args:
      beta: in (0, 2), but not 1, where a step cannot be undone.
    Raises:
      ValueError: when built, for values outside that range.
    Cost: two evaluations of f a step (one at the start); three copies of z.
    Source: McCallum, Arora, Foster (2025), Reversible Deep Equilibrium Models, arXiv 2509.12917,
      eq. 4-5; Young (1954), Trans. AMS 76, 92-111, for the relation between m and l. Deviation: the
      evaluation that begins a step is made at the end of the one before, so that the residual of
      the state that is returned is known.
    """

    causal: ClassVar[bool] = True

    beta: float = 0.5

    def __post_init__(self):
        if not 0.0 < self.beta < 2.0:
            raise ValueError(
                "jdeq.Reversible: beta must lie in (0, 2), where the pair can contract; "
                f"got {self.beta}"
            )
        if self.beta == 1.0:
            raise ValueError(
                "jdeq.Reversible: beta must not be 1, where a step forgets the state it came from "
                "and cannot be undone; got 1.0 (jdeq.Picard(damping=1.0) is the plain iteration)"
            )

    def init(self, f: Map, z: PyTree, *, ndim: int) -> ReversibleState:
        fz = f(z)
        return ReversibleState(z, fz, z, jnp.zeros_like(tree.norm(z, ndim), jnp.int32))

    def step(self, f: Map, state: ReversibleState, *, ndim: int) -> ReversibleState:
        del ndim
        y = self.mix(state.y, state.fz)
        z = self.mix(state.z, f(y))
        return ReversibleState(z, f(z), y, state.steps + 1)

    def mix(self, a: PyTree, fa: PyTree) -> PyTree:
        """A half-step, ``(1 - beta) a + beta fa``."""
        return jax.tree.map(lambda a, fa: (1.0 - self.beta) * a + self.beta * fa, a, fa)

    def unmix(self, mixed: PyTree, fa: PyTree) -> PyTree:
        """The half-step undone, ``(mixed - beta fa) / (1 - beta)``."""
        return jax.tree.map(lambda m, fa: (m - self.beta * fa) / (1.0 - self.beta), mixed, fa)

    def cost(self, state: ReversibleState) -> Int[Array, " *batch"]:
        return jnp.where(state.steps == 0, 1, 2)
