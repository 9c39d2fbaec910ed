"""The DEQ module for Flax Linen."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import errors
from jaxtyping import Array, Float, PyTree

from jdeq.fixed_point import fixed_point
from jdeq.gradients import Implicit
from jdeq.regularizers import jacobian_penalty
from jdeq.solvers import Anderson
from jdeq.types import GradientRule, ParamMap, Solution, Solver

COLLECTION = "jdeq"
"""Where a DEQ sows its statistics, when the caller makes it mutable."""


class DEQ(nn.Module):
    """Implicit layer ``z* = cell(z*, x)`` around any Linen module called as ``cell(z, x)``.

    The cell is initialised by one call. What it sows is dropped: there would be one value per
    evaluation. One key per random stream (dropout) is drawn per call and
    used at every evaluation, forward and backward. With ``mutable=["jdeq"]`` the layer sows
    ``nfe``, ``residual`` and ``status``, one entry per sample; if a key for the stream
    ``"jacobian"`` is given too, also ``jacobian_penalty``, with the randomness of the solve.

    Attributes:
      cell: the map. Its parameters live under this module as ``cell``; those of a cell built inside
        a compact method of another module live beside this one, as Linen does with any submodule
        handed over (``cell=Cell(parent=None)`` puts them under ``cell`` there too).
      solver, gradient, rtol, atol, max_steps, batch_ndim, causal, trace, test_every, compact: as
        in :func:`jdeq.fixed_point`.
      num_probes: probes of the Jacobian penalty, >= 1.
      penalty: sown in place of that one, ``penalty(f, params, z, x, key, batch_ndim=batch_ndim)``
        -> [batch], under the same name; None: `jdeq.jacobian_penalty`.
    Raises:
      ValueError: if the cell writes to a variable collection (BatchNorm in training mode, say) or
        calls a module that another one owns; for ``compact > 1``, if the cell draws random numbers.
    Cost: that of :func:`jdeq.fixed_point`; the penalty one product and its gradient.
    """

    cell: nn.Module
    solver: Solver = Anderson()
    gradient: GradientRule = Implicit()
    rtol: float = 1e-3
    atol: float = 0.0
    max_steps: int = 40
    batch_ndim: int = 1
    causal: bool = False
    trace: bool = False
    test_every: int = 1
    compact: int = 1
    num_probes: int = 1
    penalty: Callable[..., Array] | None = None

    @nn.compact
    def __call__(
        self,
        x: PyTree,
        z0: PyTree | None = None,
        *,
        probe: Float[Array, "*probe 2"] | None = None,
    ) -> Solution:
        """Solve for x from z0 (None: ``cell.initial_state(x)`` where the cell has it, else
        zeros).
        """
        if z0 is None:
            z0 = initial_state(self.cell, x)
        if self.is_initializing():
            self.cell(z0, x)
        f, variables = self._pure_cell(z0, x)
        solution = fixed_point(
            f,
            variables,
            z0,
            x,
            solver=self.solver,
            gradient=self.gradient,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
            batch_ndim=self.batch_ndim,
            causal=self.causal,
            trace=self.trace,
            test_every=self.test_every,
            compact=self.compact,
            probe=probe,
        )
        if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            for name, value in solution.stats._asdict().items():
                self.sow(COLLECTION, name, value)
            if self.has_rng("jacobian"):
                penalty = self.penalty or functools.partial(
                    jacobian_penalty, num_probes=self.num_probes
                )
                key = self.make_rng("jacobian")
                values = penalty(f, variables, solution.z, x, key, batch_ndim=self.batch_ndim)
                self.sow(COLLECTION, "jacobian_penalty", values)
        return solution

    def _pure_cell(self, z0: PyTree, x: PyTree) -> tuple[ParamMap, PyTree]:
        """``f(variables, z, x)`` with the randomness of this call, and the variables."""
        cell, variables = self.cell.unbind()
        scope = self.cell.scope
        streams = [] if scope is None else [name for name in scope.rngs if name != "jacobian"]
        if self.compact > 1:  # what is drawn depends on the number of samples
            streams = []
        f = _PureCell(cell, {name: self.cell.make_rng(name) for name in streams})
        try:
            jax.eval_shape(f, variables, z0, x)
        except errors.ModifyScopeVariableError as error:
            raise ValueError(_writes_message(f, variables, z0, x)) from error
        except (errors.ScopeCollectionNotFound, errors.ScopeParamNotFoundError) as error:
            raise ValueError(
                "jdeq.linen.DEQ: the cell must own the modules that it calls; one that belongs to "
                "another module (tied weights) has no variables in it. Build it inside the cell, "
                f"or pass its parameters to the cell through x; {error}"
            ) from error
        except errors.InvalidRngError as error:
            if self.compact == 1:
                raise
            raise ValueError(
                "jdeq.linen.DEQ: compact > 1 needs a cell that draws nothing, since draws depend "
                f"on the number of samples; {error}"
            ) from error
        return f, variables


class _PureCell:
    """``f(variables, z, x)``; hashed like its cell, so that a second eager call does not
    compile.
    """

    def __init__(self, cell: nn.Module, keys: dict[str, Array]):
        self.cell, self.keys = cell, keys

    def __call__(self, variables: PyTree, z: PyTree, x: PyTree) -> PyTree:
        return self.cell.apply(variables, z, x, rngs=self.keys)

    def __hash__(self) -> int:
        try:
            return hash((self.cell, *sorted(self.keys)))
        except TypeError:  # an attribute of the cell that cannot be hashed
            return hash((type(self.cell), *sorted(self.keys)))


def initial_state(cell: Any, x: PyTree) -> PyTree:
    """``cell.initial_state(x)`` where the cell defines it, else zeros like x."""
    if hasattr(cell, "initial_state"):
        return cell.initial_state(x)
    return jax.tree.map(jax.numpy.zeros_like, x)


def _writes_message(f: _PureCell, variables: PyTree, z0: PyTree, x: PyTree) -> str:
    """Name the collections that the cell writes."""

    def written(variables):
        mutable = nn.DenyList("params")
        return f.cell.apply(variables, z0, x, rngs=f.keys, mutable=mutable)[1]

    names = ", ".join(sorted(jax.eval_shape(written, variables)))
    return (
        f"jdeq.linen.DEQ: the cell must not write variables while it is solved; it writes {names}. "
        "Use GroupNorm or LayerNorm inside the cell, or BatchNorm with use_running_average=True, "
        "and BatchNorm in training mode outside the DEQ"
    )
