"""The only loop: stopping, per-sample freezing, the iterate to return, the non-finite guard, the
trace.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

from jdeq import tree
from jdeq.norms import SURE, largest_scale, measure
from jdeq.progress import (
    RESULTS,
    RUNNING,
    Progress,
    Stale,
    empty_trace,
    of_samples,
    put_rows,
    returned,
    take_rows,
)
from jdeq.types import Map, ParamMap, Problem, Solution, Solver, SolverStats, Status
from jdeq.vmapped import over_samples

_DIVERGENCE_FACTOR = 1e6


def resolution(z: PyTree) -> float:
    """Relative residual that rounding alone can leave: half a unit of the coarsest dtype of
    ``z``.
    """
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(z)) / 2


def iterate(
    f: Map,
    solver: Solver,
    z0: PyTree,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    ndim: int,
    causal: bool = False,
    from_zero: bool = False,
    trace: bool = False,
    test_every: int = 1,
    freeze: bool = False,
    last: bool = False,
    unroll: bool = False,
    checkpoint: bool = False,
    smaller: Sequence[tuple[int, Callable[[Int[Array, " rows"]], Map]]] = (),
) -> tuple[Solution, Any]:
    """Run ``solver`` on ``z = f(z)`` until every sample is done; return the solution and the last
    state.

    A sample is done when ``||f(z) - z|| <= atol + rtol ||f(z)||``, when it turned non-finite or
    diverged, or when the budget is spent. What is returned for it does not change afterwards.

    Args:
      f: the map, of the state alone.
      z0: float[*batch, ...] leaves; the first ``ndim`` axes index samples.
      causal: the last sample axis is a sequence: a position is done when it and all before it are,
        and is then held fixed; the last iterate is returned, whose positions were evaluated
        together. f never sees a position that is not finite.
      from_zero: ``z0`` is ``f(0)``, as it is known of an affine map: the solve starts at 0, whose
        evaluation is not made, counted or returned.
      test_every: steps between tests whether all samples are done, the one thing that samples share
        (and devices have to agree on; with it, whether norms are scaled, which changes no answer);
        as large as ``max_steps``: no test.
      freeze: hold the whole solver state of a sample that is done (else only what is returned); of
        one that turned non-finite, the last finite state.
      last: return the last finite iterate, after ``max_steps`` updates, instead of the best one
        seen in ``max_steps`` steps.
      unroll: as ``last``, and differentiable by backpropagation. ``checkpoint`` recomputes each
        step in reverse.
      smaller: falling numbers of samples, each with ``rows -> f`` of the samples ``rows`` (of the
        first axis) alone. When no more than that many are running, their states are gathered and
        the solve goes on with them; not with ``freeze``, ``last`` or ``unroll``. The state returned
        is then that of before.
    Cost: evaluations as reported in ``nfe``; a solve whose budget is a single evaluation of f, and
      one that returns the last iterate, take one more step to know the residual of what they
      return.
    """
    sound = None
    if causal:  # a position that starts non-finite is not solved for, and f sees 0 there
        z0 = lax.optimization_barrier(z0)  # else XLA folds what it can of zeros, for seconds
        sound = tree.finite(z0, ndim)
        z0 = tree.select(sound, z0, jax.tree.map(jnp.zeros_like, z0))
    if from_zero:
        first = z0
        state = solver.init(lambda _: z0, jax.tree.map(jnp.zeros_like, z0), ndim=ndim)
    else:
        state = solver.init(f, z0, ndim=ndim)
        first = state.z
    size, _, scale = measure(state, ndim, None)
    stagnates = rtol < resolution(z0) and not (unroll or last)
    tested = test_every < max_steps
    zeros = jnp.zeros_like(size, jnp.int32)
    status = jnp.full_like(zeros, RUNNING)
    if sound is not None:
        status = jnp.where(sound, status, Status.NONFINITE).astype(jnp.int32)
    load = None
    if tested and test_every == 1 and not (unroll or smaller):
        # Where each step ends with a stop test, the same reduction, over devices too, tells both.
        load = (2 + tree.counter()).astype(jnp.uint8)
    progress = Progress(
        step=tree.counter(),
        state=state,
        z=first,
        residual=jnp.full_like(size, jnp.inf),
        nfe=zeros,
        status=status,
        scale=scale,
        load=load,
        reference=jnp.ones_like(size),
        stale=Stale(jnp.full_like(size, jnp.inf), zeros) if stagnates else None,
        trace=empty_trace(size, max_steps) if trace else None,
    )
    # A loop's carry must keep its mark under shard_map, and counters start without it.
    progress = tree.vary(progress, tree.varying_axes(size))
    closing = unroll or last or max_steps == 1
    newest = unroll or last or causal

    def observe(p: Progress, state: Any, *, new: bool = True, in_loop: bool = False) -> Progress:
        """Judge the newest evaluation and keep what is to be returned; again if not ``new``."""
        running = p.status == RUNNING
        # Once, outside the loop, a pass over the state costs less than both ways compiled.
        scaled = p.load == 2 if in_loop and p.load is not None else None
        absolute, size, scale = measure(state, ndim, p.scale, scaled)
        largest = jnp.maximum(absolute, size)
        finite = jnp.isfinite(largest)
        # What left the range of squares in one step, finite or not, is measured right by the next
        # measurement.
        most = largest_scale(scale.dtype)
        known = p.scale > 1 / most  # else no more is known than that squares overflowed
        lost = (scale > SURE * p.scale) & (p.scale < most) & known
        blown = (largest == jnp.inf) & known
        sure = finite & ~lost
        relative = jnp.where(sure, tree.ratio(absolute, size), jnp.inf)
        passed = sure & (absolute <= atol + rtol * size)
        keep = running & finite if newest else running & (passed | (relative < p.residual))
        if causal:
            settled = (passed & running) | (p.status >= 0)
            length = settled.shape[-1]  # which may be 0
            position = lax.broadcasted_iota(jnp.int32, settled.shape, settled.ndim - 1)
            unsettled = jnp.where(settled, length, position)
            passed = position < jnp.min(unsettled, axis=-1, keepdims=True, initial=length)
        reference = p.reference
        if from_zero or not in_loop:  # of the first evaluation that is made
            reference = jnp.where(p.step == 0, jnp.maximum(absolute + size, 1.0), reference)
        grown = absolute > _DIVERGENCE_FACTOR * reference
        status = jnp.where(grown & sure, Status.DIVERGED, RUNNING)
        status = jnp.where(passed, Status.CONVERGED, status)
        status = jnp.where(finite | blown, status, Status.NONFINITE)
        stale = None
        if p.stale is not None:
            stale = p.stale.after(relative, resolution(z0))
            status = jnp.where((status == RUNNING) & stale.spent, Status.MAX_STEPS, status)
        record = p.trace
        if record is not None:
            row = jnp.minimum(p.step, max_steps - 1)
            now = jnp.where(running, relative, jnp.nan)
            # A closing step has no row of its own.
            now = jnp.where(p.step < max_steps, now, record[row])
            record = lax.dynamic_update_index_in_dim(record, now, row, axis=0)
        status = jnp.where(running, status, p.status).astype(jnp.int32)
        load = p.load
        if load is not None:
            each = (status == RUNNING) * (1 + (scale != 1)).astype(jnp.uint8)
            load = jnp.max(each, initial=jnp.uint8(0))
        return Progress(
            step=p.step + new,
            state=state,
            z=tree.select(keep, state.z, p.z),
            residual=jnp.where(keep, relative, p.residual),
            nfe=p.nfe + jnp.where(running & new, solver.cost(state), 0).astype(jnp.int32),
            status=status,
            scale=scale,
            load=load,
            reference=reference,
            stale=stale,
            trace=record,
        )

    def advance(p: Progress, f: Map = f) -> Progress:
        if not (freeze or newest):
            return observe(p, solver.step(f, p.state, ndim=ndim), in_loop=True)
        running = p.status == RUNNING

        def held(z: PyTree) -> PyTree:
            moving = running
            if causal:
                # f may mix positions by products with masked zeros, and 0 * NaN is NaN.
                moving = running & tree.finite(z, ndim)
            return f(tree.select(moving, z, p.state.z))

        state = solver.step(held, p.state, ndim=ndim)
        if freeze or unroll or last:  # else the rest of the state of who is done is not used again
            shared = {name: getattr(state, name) for name in solver.shared}
            state = tree.select(running, state, p.state)._replace(**shared)
        advanced = observe(p, state, in_loop=True)
        finite = advanced.status != Status.NONFINITE
        if freeze:
            state = tree.select(finite, state, p.state)._replace(**shared)
        elif causal:  # f is given from now on what is returned for the position
            state = state._replace(z=tree.select(running & finite, state.z, advanced.z))
        return advanced._replace(state=state)

    def unfinished(p: Progress, most: int = 0) -> Array:
        """Whether more than ``most`` samples are running."""
        running = p.status == RUNNING
        if most:
            return jnp.sum(of_samples(running)) > most
        return jnp.any(running) if p.load is None else p.load > 0

    def several(p: Progress, f: Map = f) -> Progress:
        end = jnp.minimum(p.step + test_every, max_steps)
        return lax.while_loop(lambda p: p.step < end, lambda p: advance(p, f), p)

    def loop(p: Progress, f: Map, most: int) -> Progress:
        body = advance if test_every == 1 else several
        return lax.while_loop(
            lambda p: (p.step < max_steps) & unfinished(p, most), lambda p: body(p, f), p
        )

    def finish(p: Progress, f: Map, rows: Array | None, left: Sequence) -> Progress:
        """The loop, with fewer and fewer samples: ``p`` and ``f`` are those of ``rows``."""
        p = loop(p, f, left[0][0] if left else 0)
        ended = observe(p, p.state, new=False)  # what the last step could not measure
        if not left:
            return ended
        (size, part), *rest = left

        def go_on(results: tuple) -> tuple:
            # Running samples first.
            chosen = jnp.argsort(~of_samples(p.status == RUNNING), stable=True)[:size]
            chosen_rows = chosen if rows is None else rows[chosen]
            inner = finish(take_rows(p, chosen, ndim), part(chosen_rows), chosen_rows, rest)
            return put_rows(results, chosen, returned(inner), ndim)

        more = (p.step < max_steps) & unfinished(p)
        results = lax.cond(more, go_on, lambda results: results, returned(ended))
        return ended._replace(**dict(zip(RESULTS, results, strict=True)))

    if not from_zero:
        progress = observe(progress, progress.state)
    if unroll:
        step = jax.checkpoint(advance) if checkpoint else advance

        def step_if_any(p: Progress) -> Progress:
            return lax.cond(unfinished(p), step, lambda p: p, p) if tested else step(p)

        # Around the conditional too, which keeps what its branch captures, the parameters, each
        # time; and inside, or activations pass out of it: a third more time.
        body = jax.checkpoint(step_if_any) if checkpoint and tested else step_if_any
        progress, _ = lax.scan(lambda p, _: (body(p), None), progress, None, length=max_steps - 1)
    elif tested and not closing:
        progress = finish(progress, f, None, smaller)
    elif tested:
        progress = loop(progress, f, 0)
    else:
        progress = several(progress)
    if closing:
        progress = advance(progress)
    if not unroll and (closing or not tested):
        progress = observe(progress, progress.state, new=False)
    status = jnp.where(progress.status == RUNNING, Status.MAX_STEPS, progress.status)
    stats = SolverStats(progress.nfe, progress.residual, status)
    return Solution(progress.z, stats, progress.trace), progress.state


def solve(
    problem: Problem,
    params: PyTree,
    z0: PyTree,
    x: PyTree,
    *,
    solver: Solver | None = None,
    freeze: bool = False,
    last: bool = False,
    unroll: bool = False,
    checkpoint: bool = False,
) -> tuple[Solution, Any]:
    """:func:`iterate` on ``z = f(params, z, x)`` as ``problem`` poses it (``solver``: in place of
    its own).
    """

    def of_rows(f: ParamMap) -> Callable[[Array], Map]:
        def part(rows: Array) -> Map:
            x_rows = tree.take(x, rows, 1)
            return lambda z: f(params, z, x_rows)

        return part

    solver = solver or problem.solver
    run = functools.partial(
        iterate,
        solver=solver,
        rtol=problem.rtol,
        atol=problem.atol,
        max_steps=problem.max_steps,
        causal=problem.causal,
        trace=problem.trace,
        test_every=problem.test_every,
        freeze=freeze,
        last=last,
        unroll=unroll,
        checkpoint=checkpoint,
        smaller=[(size, of_rows(f)) for size, f in problem.smaller],
    )
    ndim, by_jax = problem.batch_ndim + problem.causal, unroll or bool(problem.smaller)
    return over_samples(run, solver, lambda z: problem.f(params, z, x), z0, ndim, by_jax=by_jax)
