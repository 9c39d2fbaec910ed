"""The entry point: check the arguments, pull captured arrays out of f, hand over to the gradient
rule.
"""

import functools
import math
import numbers
import warnings

import jax
import jax.numpy as jnp
from jax import core
from jax.experimental import checkify
from jaxtyping import Array, Float, PyTree

from jdeq import tree
from jdeq.gradients import Implicit
from jdeq.iterate import resolution
from jdeq.solvers import Anderson
from jdeq.traced import Traced, trace_smaller
from jdeq.types import (
    GradientRule,
    ParamMap,
    Problem,
    Solution,
    Solver,
    Status,
    require_integer,
    static_rule,
)


def fixed_point(
    f: ParamMap,
    params: PyTree,
    z0: PyTree,
    x: PyTree,
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
    probe: Float[Array, "*batch 2"] | None = None,
) -> Solution:
    """Solve ``z = f(params, z, x)`` for each sample of a batch, and make the solution
    differentiable.

    A sample is done when ``||f(z) - z|| <= atol + rtol ||f(z)||``, norms over all its leaves.
    Samples do not affect each other: iterates, counts, status and gradient are those of the sample
    alone.

    Under ``vmap`` the mapped axis is one more axis of samples: solves with ``batch_ndim=0``,
    mapped, are those of the batch and take as long. JAX maps the loop, which takes longer, with
    ``compact``, ``Unrolled`` and ``jdeq.solvers.jaxopt.Jaxopt``, in the reverse pass of
    ``ReversibleGradient``, where f has effects or collectives or says how values lie on a mesh, and
    where lanes are split over an explicit mesh axis. The automatic checks of ``checkify`` do not
    look into a solve: check f by itself.

    Args:
      f: a pure map ``f(params, z, x) -> z`` that treats samples separately. It may capture traced
        arrays: they receive gradients too. Its result is cast to the dtypes of ``z0``.
      params: pytree of arrays.
      z0: initial state, a pytree of floating leaves whose first ``batch_ndim`` axes index samples.
        Its gradient is zero except with ``Unrolled`` and ``ReversibleGradient``.
      x: injection, pytree of arrays.
      solver: how to iterate.
      gradient: how the solution is differentiated.
      rtol, atol: tolerances, >= 0, plain numbers like all options. A tolerance below what the dtype
        of ``z0`` can reach is a warning, and the solve stops when it stagnates.
      max_steps: budget, >= 1; a step of Picard, Broyden and Anderson (restarted or not) is one
        evaluation, the first included; a budget of 1, which would return ``z0``, takes one more.
      batch_ndim: number of sample axes, >= 0.
      causal: the axis after the batch axes is a sequence, and what happens at a position depends
        on positions up to it only (provided f is causal): mixing, stop and freezing are per
        position, statistics have one entry per position. Gradients are of whole sequences: where f
        is not finite at one position, those of its sequence are NaN.
      trace: also return the residual of each step.
      test_every: steps between tests whether all samples are done, >= 1. That test is what devices
        that share a batch have to agree on: where that takes long, test less often; at
        ``max_steps`` or more there is no test, and a solve takes all its steps. A sample that is
        done stays as it is either way: the results are the same, the steps after are for nothing.
        (``Unrolled`` tests after every step or never.)
      compact: for batches in which few samples take many steps, >= 1. When at most
        ``1 / compact`` of the samples are running, their states are gathered and the solve goes on
        with these alone; when at most that share of them is, again, and so on; the adjoint solve of
        ``Implicit`` as well. 1: never. Results are the same up to the rounding of f on fewer
        samples. Every leaf of x must have the samples as its first axis (z0 with
        ``batch_ndim >= 1`` has), and f must give a sample the same in a smaller batch: nothing in
        params, and nothing captured or drawn inside f, may have one entry per sample. With
        ``Implicit``, ``OneStep``, ``Phantom`` and ``Neumann``, and solvers whose state belongs to
        samples one by one; not on a mesh axis that is explicit.
      probe: ``jdeq.backward_probe()``; its gradient is the report of the backward solve.

    Returns:
      ``Solution(z, stats, trace)``: z is the finite iterate with the smallest residual seen (with
      ``Unrolled``, ``ReversibleGradient`` and ``causal=True`` the last one), ``stats`` its
      residual, the evaluations spent and the status of each sample.

    Raises:
      ValueError, TypeError: at trace time, for static facts that cannot be. Nothing is raised for a
      solve that fails: see ``stats.status`` and :func:`jdeq.check`.

    Cost: ``nfe`` evaluations of f, memory constant in ``max_steps`` except with ``Unrolled`` and,
      at a much smaller rate, ``ReversibleGradient``; f is traced once per call. With ``compact`` f
      is traced, and f and the loop compiled, once more per size; each change of size gathers the
      solver's state, in the adjoint solve it also evaluates f once on the samples that go on; a
      batch that is split over devices is gathered from all of them.

    Example:
      >>> import jax.numpy as jnp, jdeq
      >>> x = jnp.ones((2, 3))
      >>> f = lambda w, z, x: jnp.tanh(w * z + x)
      >>> sol = jdeq.fixed_point(f, 0.5, jnp.zeros_like(x), x)
      >>> [jdeq.Status(status).name for status in sol.stats.status.tolist()]
      ['CONVERGED', 'CONVERGED']
    """
    _check_options(solver, gradient, rtol, atol, causal, probe)
    for option, value, least in (
        ("max_steps", max_steps, 1),
        ("batch_ndim", batch_ndim, 0),
        ("test_every", test_every, 1),
        ("compact", compact, 1),
    ):
        require_integer("jdeq.fixed_point", option, value, least)
    params, z0, x = jax.tree.map(jnp.asarray, (params, z0, x))
    _check_state(z0, batch_ndim + causal)
    _check_probe(probe, tree.batch_shape(z0, batch_ndim))
    # One mark for all under shard_map: the loop mixes them anyway, and f is traced only once.
    axes = tree.varying_axes((params, z0, x))
    params, z0, x = tree.vary((params, z0, x), axes)
    if probe is not None and axes - tree.varying_axes(probe):
        raise ValueError(
            f"jdeq.fixed_point: probe must vary over {sorted(axes)} inside shard_map, as samples "
            "do, or reports of devices would be added up: "
            f"jax.lax.pcast(jdeq.backward_probe(), {tuple(sorted(axes))}, to='varying')"
        )
    if compact > 1:
        _check_compact(gradient, solver, batch_ndim, causal, z0, x)
        if test_every >= max_steps > 1:
            raise ValueError(
                "jdeq.fixed_point: compact > 1 needs a stop test, test_every < max_steps; got "
                f"{test_every} and {max_steps}"
            )
    traced, captured = Traced.trace(f, params, z0, x)
    smaller, captured_by_smaller = trace_smaller(f, params, z0, x, compact)
    if any(axes - tree.varying_axes([leaf]) for leaf in jax.tree.leaves(captured_by_smaller)):
        raise ValueError(
            "jdeq.fixed_point: compact > 1 inside shard_map needs an f that captures nothing which "
            f"is the same on all devices of {sorted(axes)}; pass it in params"
        )
    if rtol < resolution(z0) and atol == 0:
        warnings.warn(
            f"jdeq.fixed_point: rtol={rtol:g} is below the resolution {resolution(z0):.1e} of the "
            "state's dtype; the solve stops when it stagnates",
            stacklevel=2,
        )
    problem = Problem(
        traced,
        solver,
        rtol,
        atol,
        max_steps,
        batch_ndim,
        causal,
        trace,
        test_every,
        smaller,
    )
    return _run(problem, gradient, (params, [captured, *captured_by_smaller]), z0, x, probe)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(problem: Problem, gradient: GradientRule, params, z0, x, probe) -> Solution:
    return gradient.solve(problem, params, z0, x, probe)


def backward_probe(*batch: int) -> Float[Array, "*batch 2"]:
    """Zeros to pass as ``probe``: their gradient is (nfe, relative residual) of the backward solve.

    Without arguments the mean nfe and the largest residual over the batch; with the batch shape
    one row per sample. A program that passes one probe to several solves gets the sum.
    """
    return jnp.zeros((*batch, 2), jnp.float32)


def check(solution: Solution) -> Solution:
    """Return ``solution`` if every sample converged, else raise.

    Outside jit a ``FloatingPointError`` that counts the bad samples; inside jit through
    ``jax.experimental.checkify``, whose functionalisation the caller provides:
    ``error, out = checkify.checkify(jax.jit(step))(...)``, then ``error.throw()``.
    """
    status = solution.stats.status
    good = jnp.all(status == Status.CONVERGED)
    message = (
        "jdeq.check: not every sample converged: {steps} hit max_steps, {nonfinite} non-finite, "
        "{diverged} diverged, of {total}; largest residual {residual}"
    )
    facts = {
        "steps": jnp.sum(status == Status.MAX_STEPS),
        "nonfinite": jnp.sum(status == Status.NONFINITE),
        "diverged": jnp.sum(status == Status.DIVERGED),
        "total": jnp.asarray(status.size),
        "residual": jnp.max(solution.stats.residual, initial=0.0),
    }
    if isinstance(good, core.Tracer):
        checkify.check(good, message, **facts)  # pyright: ignore[reportArgumentType]
    elif not good:
        raise FloatingPointError(message.format(**{k: v.item() for k, v in facts.items()}))
    return solution


def _check_compact(
    gradient: GradientRule, solver: Solver, batch_ndim: int, causal: bool, z0: PyTree, x: PyTree
) -> None:
    name = "jdeq.fixed_point: compact > 1 needs"
    if batch_ndim < 1:
        raise ValueError(f"{name} samples: batch_ndim must be >= 1; got {batch_ndim}")
    if not gradient.can_compact:
        raise ValueError(f"{name} a rule that keeps neither steps nor solver state; got {gradient}")
    samples = tree.batch_shape(z0, 1)[0]
    shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
    if any(shape[:1] != (samples,) for shape in shapes):
        raise ValueError(
            f"{name} x with the {samples} samples as the first axis of every leaf; got {shapes}"
        )
    explicit = [jax.typeof(leaf).sharding.spec for leaf in jax.tree.leaves((z0, x))]
    if any(axis is not None for spec in explicit for axis in spec):
        raise ValueError(f"{name} arrays without explicit mesh axes; got {explicit}")
    ndim = batch_ndim + causal
    one = jax.tree.map(lambda a: a[:1], z0)
    state = jax.eval_shape(lambda z: solver.init(lambda z: z, z, ndim=ndim), one)
    kept = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 0]
    per_sample = all(len(shape) >= ndim and shape[0] == 1 for shape in kept)
    if solver.mixes or solver.shared or not per_sample:
        raise ValueError(f"{name} a solver whose state is each sample's own; got {solver}")


def _check_options(solver, gradient, rtol, atol, causal, probe) -> None:
    name = "jdeq.fixed_point"
    if not isinstance(solver, Solver):
        raise TypeError(f"{name}: solver must be a solver such as jdeq.Anderson(); got {solver!r}")
    if not isinstance(gradient, GradientRule):
        raise TypeError(f"{name}: gradient must be a rule, such as Implicit(); got {gradient!r}")
    for option, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
            rule = f"a finite number >= 0{static_rule(value)}"
            raise ValueError(f"{name}: {option} must be {rule}; got {value}")
    for part in (solver, gradient):
        try:
            hash(part)
        except TypeError as error:
            raise TypeError(f"{name}: options must be plain numbers; got {part}") from error
    gradient.validate(solver)
    if causal and not solver.causal:
        raise ValueError(
            f"{name}: causal=True needs a solver that can step each position for itself (Picard, "
            f"Anderson, RestartedAnderson, Broyden, Reversible); got {solver}"
        )
    if probe is not None and not gradient.has_probe:
        raise ValueError(
            f"{name}: probe reports on a backward solve, and {gradient} has none; use "
            "jdeq.Implicit(), jdeq.SharedInverse() or jdeq.ReversibleGradient()"
        )


def _check_state(z0: PyTree, ndim: int) -> None:
    leaves = jax.tree.leaves(z0)
    if not leaves:
        raise ValueError("jdeq.fixed_point: z0 must have at least one leaf; got none")
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"jdeq.fixed_point: z0 must have floating leaves; got {leaf.dtype}")
    shapes = [leaf.shape for leaf in leaves]
    if any(len(s) < ndim for s in shapes) or len({s[:ndim] for s in shapes}) > 1:
        raise ValueError(
            f"jdeq.fixed_point: the leaves of z0 must share their first {ndim} axes "
            f"(batch_ndim, and the sequence if causal); got shapes {shapes}"
        )


def _check_probe(probe: Array | None, batch: tuple[int, ...]) -> None:
    if probe is None:
        return
    shape, dtype = jnp.shape(probe), jnp.result_type(probe)
    if shape not in ((2,), (*batch, 2)) or dtype != jnp.float32:
        raise ValueError(
            "jdeq.fixed_point: probe must be jdeq.backward_probe(), float32 of shape (2,) or "
            f"{(*batch, 2)}; got {dtype} of shape {shape}"
        )
