"""Any jaxopt fixed-point or root solver as a solver of ``fixed_point`` (extra ``jaxopt``)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxopt.base import IterativeSolver
from jaxtyping import Array, Int, PyTree

from jdeq.types import Map, Solver


class JaxoptState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    spent: Int[Array, ""]  # evaluations of f of the latest step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jaxopt(Solver):
    """One run of a jaxopt solver a step, ``z <- build(f).run(f(z))``.

    ``Jaxopt(build=lambda f: AndersonAcceleration(f))``; a root solver is handed the residual:
    ``Jaxopt(build=lambda f: Broyden(lambda z: f(z) - z))``. Stop and budget of the run are jaxopt's
    ``tol`` (absolute, over the whole batch) and ``maxiter``; as long as a sample has not passed the
    test of ``fixed_point``, up to its ``max_steps``, the run is repeated from where it ended, so
    choose ``tol`` no looser than that test.

    Unlike jdeq's own solvers it mixes and stops over the whole batch: batch mates change a sample's
    iterates, and one NaN stops all. No causal solve. The adjoint system of ``Implicit()`` is solved
    by ``jdeq.Anderson()``; ``Unrolled`` needs a jaxopt solver with ``implicit_diff=False`` (else
    jax raises CustomVJPException), which then makes all ``maxiter`` iterations.

    Args:
      build: from a map ``z -> f(z)`` of the batched state to the jaxopt solver. Define it once: two
        adapters are equal, and share compiled programs, when they hold the same function.
    Raises:
      TypeError: when built, if ``build`` is not callable; when traced, if it gives something else
        than an iterative jaxopt solver (its SciPy wrappers run outside jit).
    Cost: jaxopt's ``num_fun_eval`` and one evaluation more a step, counted for every sample.
    Source: Blondel et al. (2022), Efficient and Modular Implicit Differentiation, NeurIPS (jaxopt
      0.8.5).
    """

    mixes: ClassVar[bool] = True

    build: Callable[[Map], Any]

    def __post_init__(self):
        if not callable(self.build):
            raise TypeError(
                "jdeq.solvers.jaxopt.Jaxopt: build must be a function from the map to a jaxopt "
                f"solver; got {self.build!r}"
            )

    def init(self, f: Map, z: PyTree, *, ndim: int) -> JaxoptState:
        del ndim
        return JaxoptState(z, f(z), jnp.int32(1))

    def step(self, f: Map, state: JaxoptState, *, ndim: int) -> JaxoptState:
        del ndim
        solver = self.build(f)
        if not isinstance(solver, IterativeSolver):
            raise TypeError(
                "jdeq.solvers.jaxopt.Jaxopt: build must return an iterative jaxopt solver; "
                f"got {solver!r}"
            )
        z, info = solver.run(state.fz)
        return JaxoptState(z, f(z), info.num_fun_eval.astype(jnp.int32) + 1)

    def cost(self, state: JaxoptState) -> Int[Array, ""]:
        return state.spent
