"""The DEQ module for Flax NNX."""

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

    The cell is split, and merged as a copy inside the map, so a solve leaves it as it was: what it
    assigns to its own parameters, as SpectralNorm and WeightNorm do, lasts for one evaluation. Each
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
      ValueError: when called, if the cell writes variables other than its random streams and its
        parameters (BatchNorm in training mode, say); for ``compact > 1``, if the cell draws random
        numbers.
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
                f"{', '.join(others)}. Use GroupNorm or LayerNorm, BatchNorm with "
                "use_running_average=True or SpectralNorm with update_stats=False inside the cell, "
                "and BatchNorm in training mode outside the DEQ"
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


def _pure(graph: Any) -> Any:
    """``f(state, z, x)`` for cells of one structure."""

    def f(state: PyTree, z: PyTree, x: PyTree) -> PyTree:
        return nnx.merge(graph, state, copy=True)(z, x)

    return f


def _written(graph: Any, state: PyTree, z0: PyTree, x: PyTree) -> dict[tuple, type]:
    """Path and type of every variable that one evaluation of the cell creates or overwrites with
    something that is not its value; parameters left out.
    """
    kinds: dict[tuple, type] = {}

    def evaluate(state: PyTree, z: PyTree, x: PyTree) -> tuple[list, list]:
        cell = nnx.merge(graph, state, copy=True)
        cell(z, x)
        before = {path: jax.tree.leaves(leaf) for path, leaf in nnx.to_flat_state(state)}
        old, new = [], []
        for path, leaf in nnx.to_flat_state(nnx.state(cell)):
            kind = type(leaf) if isinstance(leaf, nnx.Variable) else jax.Array
            if not issubclass(kind, nnx.Param):
                kinds[path] = kind
                old.append(before.get(path, []))
                new.append(jax.tree.leaves(leaf))
        return old, new

    try:
        closed, shapes = jax.make_jaxpr(evaluate, return_shape=True)(state, z0, x)
    except TypeError as error:
        error.add_note("jdeq.nnx.DEQ calls its cell as cell(z, x)")
        raise
    jaxpr: Any = closed.jaxpr
    sources = [_source(jaxpr, var) for var in jaxpr.outvars]
    old, new = jax.tree.unflatten(jax.tree.structure(shapes), sources)
    return {
        path: kind
        for (path, kind), was, now in zip(kinds.items(), old, new, strict=True)
        if was != now or None in now
    }


def _source(jaxpr: Any, var: Any) -> int | None:
    """Which input of a program a value is, also if it passed through programs inside; None: none.

    ``nnx.jit`` and ``nnx.remat`` give back all that they were given.
    """
    if var in jaxpr.invars:
        return jaxpr.invars.index(var)
    for eqn in jaxpr.eqns:
        if var in eqn.outvars and "jaxpr" in eqn.params:
            inner = eqn.params["jaxpr"]
            inner = getattr(inner, "jaxpr", inner)
            place = _source(inner, inner.outvars[eqn.outvars.index(var)])
            return None if place is None else _source(jaxpr, eqn.invars[place])
    return None


def _streams(cell: nnx.Module) -> list[tuple[tuple, nnx.RngStream]]:
    nodes = nnx.iter_graph(cell)
    return [(path, node) for path, node in nodes if isinstance(node, nnx.RngStream)]
