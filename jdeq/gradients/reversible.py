"""Exact gradients of the reversible pair iteration, by stepping back."""

import dataclasses
import functools
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Int, PyTree

from jdeq import tree
from jdeq.gradients.implicit import report
from jdeq.gradients.rule import first_order_only
from jdeq.iterate import resolution, solve
from jdeq.solvers import Reversible
from jdeq.solvers.reversible import ReversibleState
from jdeq.types import GradientRule, Map, Problem, Solution, Solver

_FIRST_ORDER = "jdeq.ReversibleGradient: the reverse pass cannot be differentiated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReversibleGradient(GradientRule):
    """Backpropagation through the steps of :class:`jdeq.Reversible`, which are undone, not stored.

    Exact for the program that ran, converged or not: the last iterate, after ``max_steps`` updates
    or where a sample passed the test, is returned, and each sample goes back over the steps that it
    took. z0 receives a gradient. Undoing a step magnifies rounding, so the pair (y, z) is kept
    every k steps as an anchor to start again from. k is the largest number for which an error of
    one rounding stays below ``rtol`` if f is 1-Lipschitz (see :meth:`anchor_every`). A probe
    reports, for each sample, the evaluations of the reverse pass and the largest error met at an
    anchor, relative to ``||z||``: the reconstruction error itself, not a bound.

    No forward mode and no second derivatives: ``gradient=jdeq.Unrolled()`` with the same solver is
    the same function and has both.

    Args:
      rtol: wanted relative error of the reconstructed states, > 0 and finite.
    Raises:
      ValueError: when built, if ``rtol`` is out of range; when used with another solver than
        Reversible.
    Cost: N steps take 2N + 1 evaluations forward, 2N and 2N pullbacks in reverse. Memory: the
      activations of one evaluation, 2 N / k copies of z and a few more.
    Source: McCallum, Arora, Foster (2025), Reversible Deep Equilibrium Models, arXiv 2509.12917,
      section 3. Deviations: anchors, where the published code keeps float64 states; per sample.
    """

    exact: ClassVar[bool] = True
    has_probe: ClassVar[bool] = True

    rtol: float = 1e-5

    def __post_init__(self):
        if not 0 < self.rtol < math.inf:
            raise ValueError(
                f"jdeq.ReversibleGradient: rtol must be finite and > 0; got {self.rtol}"
            )

    def validate(self, solver: Solver) -> None:
        if not isinstance(solver, Reversible):
            raise ValueError(
                "jdeq.ReversibleGradient: the solver must be jdeq.Reversible, whose steps it "
                f"undoes; got {solver}"
            )

    def anchor_every(self, solver: Reversible, z: PyTree) -> int:
        """k, for states with the dtypes of ``z``.

        An undone step multiplies an error by at most the larger root g of
        ``g^2 - (2 / c + (beta / c)^2) g + 1 / c^2 = 0`` with ``c = |1 - beta|``, if f is
        1-Lipschitz. From one anchor to the state after the next one are k - 1 steps.
        """
        c = abs(1.0 - solver.beta)
        half = 1.0 / c + (solver.beta / c) ** 2 / 2
        growth = half + math.sqrt(half**2 - 1.0 / c**2)
        room = math.log(self.rtol / resolution(z)) / math.log(growth)
        return 1 + max(0, math.floor(room))

    def solve(
        self, problem: Problem, params: PyTree, z0: PyTree, x: PyTree, probe: Array | None
    ) -> Solution:
        return _solve(self, problem, params, z0, x, probe)


class _AnchoredState(NamedTuple):
    z: PyTree
    fz: PyTree
    pair: ReversibleState
    anchors: PyTree  # (y, z) of every k-th step, float[*batch, max_steps / k, ...]
    step: Int[Array, ""]  # taken by the samples that still run


@dataclasses.dataclass(frozen=True)
class _Anchored(Solver):
    """Reversible, keeping anchors."""

    shared: ClassVar[tuple[str, ...]] = ("anchors", "step")

    solver: Reversible
    every: int
    count: int

    def init(self, f: Map, z: PyTree, *, ndim: int) -> _AnchoredState:
        pair = self.solver.init(f, z, ndim=ndim)
        anchors = tree.history((pair.y, pair.z), self.count, ndim)
        return _AnchoredState(pair.z, pair.fz, pair, anchors, tree.counter())

    def step(self, f: Map, state: _AnchoredState, *, ndim: int) -> _AnchoredState:
        pair = self.solver.step(f, state.pair, ndim=ndim)
        # Each step overwrites the slot of its k, so that what remains is step k itself. The slots
        # that a sample reads lie before its end, so it does not matter what is written after.
        slot = state.step // self.every
        anchors = tree.history_set(state.anchors, slot, (pair.y, pair.z), ndim)
        return _AnchoredState(pair.z, pair.fz, pair, anchors, state.step + 1)

    def cost(self, state: _AnchoredState) -> Int[Array, " *batch"]:
        return self.solver.cost(state.pair)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(rule, problem, params, z0, x, probe):
    del rule, probe
    return solve(problem, params, z0, x, freeze=True, last=True)[0]


def _solve_forward(rule, problem, params, z0, x, probe):
    inputs = (params, x)
    moving = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, inputs)
    still = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, inputs)
    values = jax.tree.map(lambda leaf: leaf.value, (params, z0, x, probe))
    params, z0, x, probe = first_order_only(_FIRST_ORDER, values)
    every = rule.anchor_every(problem.solver, z0)
    anchored = _Anchored(problem.solver, every, -(-problem.max_steps // every))
    solution, state = solve(problem, params, z0, x, solver=anchored, freeze=True, last=True)
    return solution, (moving, still, z0, state.pair._replace(fz=None), state.anchors, probe)


def _solve_backward(rule, problem, kept, cotangent):
    d_z = jax.tree.map(
        lambda ct, a: jnp.zeros_like(a) if isinstance(ct, SymbolicZero) else ct,
        cotangent.z,
        kept[2],
    )
    (moving, still, z0, last, anchors, probe), d_z = first_order_only(_FIRST_ORDER, (kept, d_z))
    solver, ndim = problem.solver, problem.batch_ndim + problem.causal
    beta, every = solver.beta, rule.anchor_every(solver, z0)
    axes = tree.varying_axes(z0)
    unit = tree.unit(tree.largest(last.z, ndim))
    size = tree.norm(tree.divide(last.z, unit), ndim)

    def pull(point: PyTree, ct: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """f at a point, and the pullback of ct to what moves (in wide sums) and to the point."""

        def call(moving, point):
            params, x = _merge(moving, still)
            return problem.f(params, point, x)

        value, pullback = jax.vjp(call, moving, point)
        d_moving, d_point = pullback(ct)
        return value, _widen(d_moving), d_point

    def undo(carry):
        s, z, y, d_z, d_y, total, worst = carry
        active = last.steps >= s

        def entering(ct: PyTree) -> PyTree:
            """What reaches f in a half-step, for the samples that took it."""
            return tree.select(active, _times(beta, ct), _zeros(ct))

        # The pair that this step started from, where it was kept: every k-th, and z0.
        slot = jnp.maximum((s - 1) // every - 1, 0)
        here, begin = (jnp.broadcast_to(c, active.shape) for c in ((s - 1) % every == 0, s == 1))
        anchor = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, slot, axis=ndim, keepdims=False), anchors
        )
        y_kept, z_kept = tree.select(begin, (z0, z0), anchor)

        def known(undone: PyTree, kept: PyTree, held: PyTree) -> tuple[PyTree, Array]:
            """The kept state in place of the undone one, and how far they were apart."""
            off = tree.norm(tree.divide(tree.subtract(undone, kept), unit), ndim)
            off = jnp.where(here & active, off / jnp.where(size == 0, 1.0, size), 0.0)
            return tree.select(active, tree.select(here, kept, undone), held), off

        # z <- (1 - beta) z + beta f(y). Positions that are done stood at their z while f was
        # evaluated for the others (causal solves): what flows to them is theirs.
        f_y, first, at_y = pull(tree.select(active, y, z), entering(d_z))
        z, off_z = known(solver.unmix(z, f_y), z_kept, z)
        d_z = tree.select(active, _times(1.0 - beta, d_z), tree.add(d_z, at_y))
        d_y = tree.select(active, tree.add(d_y, at_y), d_y)
        # y <- (1 - beta) y + beta f(z)
        f_z, second, at_z = pull(z, entering(d_y))
        y, off_y = known(solver.unmix(y, f_z), y_kept, y)
        d_z = tree.add(d_z, at_z)
        d_y = tree.select(active, _times(1.0 - beta, d_y), d_y)
        total = jax.tree.map(lambda t, a, b: t + a + b, total, first, second)
        worst = jnp.maximum(worst, jnp.maximum(off_z, off_y))
        return s - 1, z, y, d_z, d_y, total, worst

    steps, wide = jnp.max(last.steps, initial=0), _widen(_zeros(moving))
    start = (steps, last.z, last.y, d_z, _zeros(d_z), wide, jnp.zeros_like(size))
    start = tree.vary(start, axes)
    _, _, _, d_z, d_y, total, worst = lax.while_loop(lambda c: c[0] > 0, undo, start)
    d_params, d_x = jax.tree.map(lambda t, a: t.astype(a.dtype), total, moving)
    d_probe = None if probe is None else report(2 * last.steps, worst, probe)
    return d_params, tree.add(d_z, d_y), d_x, d_probe


_solve.defvjp(_solve_forward, _solve_backward, symbolic_zeros=True)


def _merge(moving: PyTree, still: PyTree) -> PyTree:
    return jax.tree.map(
        lambda m, s: s if m is None else m, moving, still, is_leaf=lambda a: a is None
    )


def _times(c: float, a: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: c * leaf, a)


def _zeros(a: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, a)


def _widen(a: PyTree) -> PyTree:
    """In the dtypes in which many terms are summed."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), a)
