"""The DEQ module for Flax NNX."""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from jdeq.fixed_point import fixed_point
from jdeq.gradients import Implicit
from jdeq.linen import initial_state
from jdeq.regularizers import jacobian_penalty
from jdeq.solvers import Anderson
from jdeq.types import GradientRule, Solution, Solver


class DEQ(nnx.Module):
    """Implicit layer ``z* = cell(z*, x)`` around any NNX module called as ``cell(z, x)``.

    The cell is split, and merged as a copy inside the map, so a solve leaves it as it was. Each
    random stream that the cell draws from gives one key per call, used at every evaluation, forward
    and backward; that advances the stream by one. Statistics are in the returned ``Solution``.

    In ``nnx.Sequential`` the fields of the solution reach the next layer one by one:
    ``nnx.Sequential(encoder, deq, lambda z, stats, trace: z, head)``.

    Args:
      cell: the map.
      solver, gradient, rtol, atol, max_steps, batch_ndim, causal, trace, test_every, compact: as
        in :func:`jdeq.fixed_point`.
    Raises:
      TypeError: when built, if the cell is no NNX module.
      ValueError: when called, if the cell writes variables other than its random streams (BatchNorm
        in training mode, say); for ``compact > 1``, if the cell draws random numbers.
    Cost: that of :func:`jdeq.fixed_point`; the cell is traced once more.
    """

    def __init__(
        self,
        cell: nnx.Module,
        *,
        solver: Solver = Anderson(),  # noqa: B008
        gradient: GradientRule = Implicit(),  # noqa: B008
        rtol: float = 1e-3,
        atol: float = 0.0,
        max_steps: int = 40,
        batch_ndim: int = 1,
        causal: bool = False,
        trace: bool = False,
        test_every: int = 1,
        compact: int = 1,
    ):
        if not isinstance(cell, nnx.Module):
            raise TypeError(f"jdeq.nnx.DEQ: cell must be an nnx.Module; got {cell!r}")
        self.cell = cell
        self.solver = solver
        self.gradient = gradient
        self.rtol = rtol
        self.atol = atol
        self.max_steps = max_steps
        self.batch_ndim = batch_ndim
        self.causal = causal
        self.trace = trace
        self.test_every = test_every
        self.compact = compact

    def __call__(
        self,
        x: PyTree,
        z0: PyTree | None = None,
        *,
        probe: Float[Array, " *probe 2"] | None = None,
    ) -> Solution:
        """Solve for x from z0; None: ``cell.initial_state(x)`` if the cell has it, else zeros."""
        z0 = initial_state(self.cell, x) if z0 is None else z0
        graph, state = self._frozen_cell(z0, x)
        return self._solve(graph, state, z0, x, probe)

    def with_penalty(
        self,
        x: PyTree,
        key: Key[Array, ""],
        z0: PyTree | None = None,
        *,
        num_probes: int = 1,
        probe: Float[Array, " *probe 2"] | None = None,
    ) -> tuple[Solution, Float[Array, " *batch"]]:
        """Solve as a call does, and also return :func:`jdeq.jacobian_penalty` at the solution.

        Both use the same randomness of the cell; ``key`` draws the probes of the penalty.
        """
        z0 = initial_state(self.cell, x) if z0 is None else z0
        graph, state = self._frozen_cell(z0, x)
        solution = self._solve(graph, state, z0, x, probe)
        penalty = jacobian_penalty(
            _pure(graph),
            state,
            solution.z,
            x,
            key,
            num_probes=num_probes,
            batch_ndim=self.batch_ndim,
        )
        return solution, penalty

    def _solve(self, graph: Any, state: PyTree, z0: PyTree, x: PyTree, probe: Any) -> Solution:
        return fixed_point(
            _pure(graph),
            state,
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

    def _frozen_cell(self, z0: PyTree, x: PyTree) -> tuple[Any, PyTree]:
        """The cell split, its random streams (those it uses advance) set to this call's keys."""
        graph, state = nnx.split(self.cell)
        written = _written(graph, state, z0, x)
        others = [
            f"{kind.__name__} {'.'.join(map(str, path))}"
            for path, kind in written.items()
            if not issubclass(kind, nnx.RngCount)
        ]
        if others:
            raise ValueError(
                "jdeq.nnx.DEQ: the cell must not write variables while it is solved; it writes "
                f"{', '.join(others)}. Use GroupNorm or LayerNorm, or BatchNorm with "
                "use_running_average=True, inside the cell and BatchNorm outside the DEQ"
            )
        if not written:
            return graph, state
        if self.compact > 1:
            streams = ", ".join(".".join(map(str, path)) for path in written)
            raise ValueError(
                "jdeq.nnx.DEQ: compact > 1 needs a cell that draws nothing, since draws depend on "
                f"the number of samples; it draws from {streams}"
            )
        cell = nnx.clone(self.cell)
        for (path, stream), (_, copy) in zip(_streams(self.cell), _streams(cell), strict=True):
            if (*path, "count") in written:
                key = stream()
                copy.key[...] = key
                copy.count[...] = jax.numpy.zeros_like(copy.count[...])
        return nnx.split(cell)


@functools.lru_cache(maxsize=256)
def _pure(graph: Any) -> Any:
    """``f(state, z, x)`` for cells of one structure: one object, so eager calls compile once."""

    def f(state: PyTree, z: PyTree, x: PyTree) -> PyTree:
        return nnx.merge(graph, state, copy=True)(z, x)

    return f


def _written(graph: Any, state: PyTree, z0: PyTree, x: PyTree) -> dict[tuple, type]:
    """Path and type of every variable that one evaluation of the cell creates or overwrites."""
    found = {}

    def evaluate(state: PyTree, z: PyTree, x: PyTree) -> PyTree:
        cell = nnx.merge(graph, state, copy=True)
        out = cell(z, x)
        before = {path: v.get_value() for path, v in nnx.to_flat_state(state)}
        for path, variable in nnx.to_flat_state(nnx.state(cell)):
            if before.get(path) is not variable.get_value():
                found[path] = type(variable)
        return out

    try:
        jax.eval_shape(evaluate, state, z0, x)
    except TypeError as error:
        error.add_note("jdeq.nnx.DEQ calls its cell as cell(z, x)")
        raise
    return found


def _streams(cell: nnx.Module) -> list[tuple[tuple, nnx.RngStream]]:
    nodes = nnx.iter_graph(cell)
    return [(path, node) for path, node in nodes if isinstance(node, nnx.RngStream)]
