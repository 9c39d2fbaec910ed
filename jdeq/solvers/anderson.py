"""Anderson acceleration, per sample."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jdeq import tree
from jdeq.solvers.small import gram_solve
from jdeq.types import Map, Solver, require_integer


class AndersonState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    df: PyTree  # float[*batch, depth, ...]  differences of successive f(z)
    dr: PyTree  # float[*batch, depth, ...]  differences of successive residuals
    gram: Float[Array, "*batch depth depth"]  # inner products of the slots of dr
    projection: Float[Array, " *batch depth"]  # inner products of dr with the newest residual
    slot: Int[Array, ""]  # the slot written next


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration, ``z <- z + damping r - (dZ + damping dR) gamma``.

    ``gamma`` minimises ``||r - dR gamma||`` for the residual ``r = f(z) - z`` and the last
    ``depth`` differences of iterates (dZ) and residuals (dR), each sample for itself. On a linear
    map it is equivalent to GMRES restarted softly, so it also solves contractions that are slow,
    rotations and many maps with eigenvalues beyond 1.

    Args:
      depth: number of differences kept, >= 1; at most one less than a sample has entries, or two
        of two.
      damping: in (0, 1]; share of the mixed residual that is added.
      ridge: Tikhonov term of the least-squares problem, relative to the squared length of each
        difference: rescaling f changes nothing while their squares are normal floats. None: 10
        units in the last place of the Gram dtype.
    Raises:
      ValueError: when built, for values outside these ranges.
    Cost: one evaluation of f a step; 2 depth + 2 copies of z; a step reads the history twice, keeps
      the Gram matrix and updates one row of it.
    Source: Anderson (1965), Iterative procedures for nonlinear integral equations, J. ACM 12; in
      the difference form of Walker and Ni (2011), SIAM J. Numer. Anal. 49, eq. 2.3. Deviations: per
      sample, columns scaled to unit length before the ridge is added.
    """

    causal: ClassVar[bool] = True

    depth: int = 5
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self):
        require_integer("jdeq.Anderson", "depth", self.depth, 1)
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"jdeq.Anderson: damping must lie in (0, 1]; got {self.damping}")
        if self.ridge is not None and not 0.0 <= self.ridge < 1.0:
            raise ValueError(f"jdeq.Anderson: ridge must lie in [0, 1) or None; got {self.ridge}")

    def init(self, f: Map, z: PyTree, *, ndim: int) -> AndersonState:
        fz = f(z)
        # More differences than entries are dependent, as many of them nearly so at the end: what
        # they add is rounding, which derivatives of the steps multiply. Of two entries both are
        # kept: that costs no accuracy, and one alone takes a quarter more evaluations.
        entries = tree.sample_size(fz, ndim)
        depth = min(self.depth, max(1, min(entries, 2), entries - 1))
        past = tree.history(fz, depth, ndim)
        projection = tree.no_products(fz, depth, ndim)
        gram = jnp.repeat(projection[..., None], depth, axis=-1)
        return AndersonState(z, fz, past, past, gram, projection, tree.counter())

    def step(self, f: Map, state: AndersonState, *, ndim: int) -> AndersonState:
        residual = tree.subtract(state.fz, state.z)
        gamma = gram_solve(state.gram, state.projection, self.ridge)
        mixed = tree.history_mix(state.df, gamma, ndim)
        # From z and r, not from f(z): so each of the state's arrays can be updated in place.
        step = tree.subtract(residual, mixed)
        if self.damping != 1.0:
            mixed = tree.history_mix(state.dr, gamma, ndim)
            undamped = tree.subtract(residual, mixed)
            step = jax.tree.map(lambda a, r: a - (1.0 - self.damping) * r, step, undamped)
        z = tree.cast_like(tree.add(state.z, step), state.z)

        fz = f(z)
        change = tree.subtract(tree.subtract(fz, z), residual)
        # The history is read before it is written, and what is written depends on what was read
        # (a sample whose products overflowed is lost anyway): so it can be updated in place.
        depth = state.projection.shape[-1]
        here = jnp.arange(depth) == state.slot
        row = tree.history_dot(state.dr, change, ndim)
        lost = ~jnp.isfinite(jnp.sum(row, axis=-1))
        stored = tree.select(lost, jax.tree.map(jnp.zeros_like, change), change)
        row = jnp.where(here, tree.dot(change, change, ndim)[..., None], row)
        df = tree.history_set(state.df, state.slot, tree.add(step, change), ndim)
        dr = tree.history_set(state.dr, state.slot, stored, ndim)
        gram = jnp.where(here[:, None], row[..., None, :], state.gram)
        gram = jnp.where(here, row[..., None], gram)
        # dr^T (residual + change), without reading the history again.
        before = jnp.where(here, tree.dot(change, residual, ndim)[..., None], state.projection)
        projection = before + row
        return AndersonState(z, fz, df, dr, gram, projection, (state.slot + 1) % depth)
