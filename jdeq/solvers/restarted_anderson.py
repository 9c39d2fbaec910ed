"""Anderson acceleration that starts anew when its history is full, per sample."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jdeq import tree
from jdeq.solvers.small import gram_solve
from jdeq.types import Map, Solver, require_integer


class RestartedAndersonState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    residuals: PyTree  # float[*batch, depth, ...]  r_0 .. r_{count-1} since the restart
    gram: Float[Array, "*batch depth depth"]  # their inner products
    points: Float[Array, "*batch depth depth"]  # z_i = z + sum_j points_ij r_j
    count: Int[Array, ""]  # residuals stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartedAnderson(Solver):
    """Anderson acceleration with restarts, ``z <- sum_i alpha_i (z_i + damping r_i)``.

    ``alpha``, which sums to 1, minimises ``||sum_i alpha_i r_i||`` over the residuals
    ``r_i = f(z_i) - z_i`` since the last restart, each sample for itself; after ``depth`` of them
    it starts anew. On a linear map it is GMRES(depth) up to the ridge: between restarts each
    iterate is the newest one plus a combination of the residuals, so that a few numbers stand for
    all of them, and it keeps half of what ``Anderson`` keeps at the same depth. At equal memory it
    mostly takes fewer evaluations; but what a restart forgets is relearnt, and where eigenvalues
    are next to 1 (0.999), or the tolerance is near the resolution of the dtype, it can stagnate
    where ``Anderson`` converges.

    Args:
      depth: number of residuals kept, >= 2.
      damping: in (0, 1]; share of the mixed residual that is added.
      ridge: Tikhonov term of the least-squares problem, relative to the squared length of each
        residual: rescaling f changes nothing while their squares are normal floats. None: 10
        units in the last place of the Gram dtype.
    Raises:
      ValueError: when built, for values outside these ranges.
    Cost: one evaluation of f a step; depth + 2 copies of z; a step reads the history twice.
    Source: Pulay (1980), Chem. Phys. Lett. 73, 393-398; with restarts Pratapa and Suryanarayana
      (2015), Chem. Phys. Lett. 635, 69-74. Deviations: per sample, residuals scaled to unit length
      before the ridge is added; iterates kept by their coefficients alone, as Kelley (1995),
      section 7.3, keeps Broyden's method by its steps.
    """

    causal: ClassVar[bool] = True

    depth: int = 8
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self):
        name = "jdeq.RestartedAnderson"
        require_integer(name, "depth", self.depth, 2)
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"{name}: damping must lie in (0, 1]; got {self.damping}")
        if self.ridge is not None and not 0.0 <= self.ridge < 1.0:
            raise ValueError(f"{name}: ridge must lie in [0, 1) or None; got {self.ridge}")

    def init(self, f: Map, z: PyTree, *, ndim: int) -> RestartedAndersonState:
        fz = f(z)
        residuals = tree.history(fz, self.depth, ndim)
        nothing = tree.no_products(fz, self.depth, ndim)
        square = jnp.repeat(nothing[..., None], self.depth, axis=-1)
        return RestartedAndersonState(z, fz, residuals, square, square, tree.counter())

    def step(self, f: Map, state: RestartedAndersonState, *, ndim: int) -> RestartedAndersonState:
        slot = jnp.where(state.count == self.depth, 0, state.count)
        slots = jnp.arange(self.depth)
        before, here = slots < slot, slots == slot
        residual = tree.subtract(state.fz, state.z)
        square = tree.dot(residual, residual, ndim)[..., None]
        row = jnp.where(before, tree.history_dot(state.residuals, residual, ndim), 0.0)
        row = jnp.where(here, square, row)
        # The history is read before it is written, and what is written depends on what was read (a
        # sample whose products overflowed is lost anyway): so it can be updated in place.
        lost = ~jnp.isfinite(jnp.sum(row, axis=-1))
        stored = tree.select(lost, jax.tree.map(jnp.zeros_like, residual), residual)
        residuals = tree.history_set(state.residuals, slot, stored, ndim)
        gram = jnp.where(before[:, None] & before, state.gram, 0.0)
        gram = jnp.where(here[:, None], row[..., None, :], gram)
        gram = jnp.where(here, row[..., None], gram)

        # alpha is G^-1 1 over its sum; a residual whose square is 0 teaches nothing: a plain step.
        alpha = gram_solve(gram, jnp.broadcast_to(square, row.shape), self.ridge)
        total = jnp.sum(alpha, axis=-1, keepdims=True)
        alpha = jnp.where(total == 0, here, alpha) / jnp.where(total == 0, 1.0, total)

        points = jnp.where(before[:, None], state.points, 0.0)
        move = tree.history_product(points, alpha, ndim) + self.damping * alpha
        # Not by a product of matrices, which would take copies of a history that is written here.
        step = tree.history_sum(residuals, move, ndim)
        z = tree.cast_like(tree.add(state.z, step), state.z)
        points = jnp.where((before | here)[:, None], points - move[..., None, :], 0.0)
        return RestartedAndersonState(z, f(z), residuals, gram, points, slot + 1)
