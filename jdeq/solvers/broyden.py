"""Good Broyden's method with limited memory, per sample."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jdeq import tree
from jdeq.types import Map, Solver, require_integer


class BroydenState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    steps: PyTree  # float[*batch, history, ...]  s_0 .. s_{count-1}; the newest led to z
    gram: Float[Array, "*batch history history"]  # inner products of the steps
    transfer: Float[Array, "*batch history history"]  # b_i = sum_j transfer_ij s_j
    count: Int[Array, ""]  # steps stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Good Broyden's method, ``z <- z + P (f(z) - z)`` with ``P ~ (I - J)^-1`` built from the
    steps.

    ``P = I + sum_i a_i b_i^T`` with ``a_i = s_{i+1} / |s_i|^2`` and ``b_i = P_i^T s_i``, each
    sample for itself. Converges superlinearly near a fixed point where I - J is invertible, also
    where the spectral radius of J exceeds 1. Full steps, no line search. When the history is full
    it restarts from ``P = I``.

    Args:
      history: number of steps kept, >= 2.
    Raises:
      ValueError: when built, if ``history`` < 2.
    Cost: one evaluation of f a step; history + 2 copies of z; a step reads the history twice.
    Source: Broyden (1965), Math. Comp. 19, 577-593; stored by steps alone as in Kelley (1995),
      Iterative Methods for Linear and Nonlinear Equations, section 7.3. Deviation: the products
      over steps are written as two matrix products through their Gram matrix.
    """

    causal: ClassVar[bool] = True

    history: int = 20

    def __post_init__(self):
        require_integer("jdeq.Broyden", "history", self.history, 2)

    def init(self, f: Map, z: PyTree, *, ndim: int) -> BroydenState:
        fz = f(z)
        steps = tree.history(fz, self.history, ndim)
        nothing = tree.no_products(fz, self.history, ndim)
        square = jnp.repeat(nothing[..., None], self.history, axis=-1)
        return BroydenState(z, fz, steps, square, square, tree.counter())

    def step(self, f: Map, state: BroydenState, *, ndim: int) -> BroydenState:
        full = state.count == self.history
        state = state._replace(
            gram=jnp.where(full, 0.0, state.gram),
            transfer=jnp.where(full, 0.0, state.transfer),
            count=jnp.where(full, 0, state.count),
        )
        residual = tree.subtract(state.fz, state.z)
        products = tree.history_dot(state.steps, residual, ndim)
        beta = _matvec(state.transfer, products)
        weights = jnp.roll(_pair_weights(state, beta), 1, axis=-1)
        gain = self._gain(state, beta)
        # P r with the newest secant learnt: (P r) |s|^2 / (|s|^2 - s^T P r).
        move = tree.add(residual, tree.history_product(state.steps, weights, ndim))
        move = tree.cast_like(tree.scale(gain, move), state.z)
        row = gain[..., None] * (products + _matvec(state.gram, weights))
        z = tree.add(state.z, move)
        return self._remember(state, move, row, ndim)._replace(z=z, fz=f(z))

    def inverse(self, state: BroydenState, v: PyTree, *, ndim: int, transpose: bool) -> PyTree:
        """``P v``, or ``P^T v``: the estimate of ``(I - J)^-1`` or its transpose, applied to v."""
        products = tree.history_dot(state.steps, v, ndim)
        if transpose:
            alpha = _pair_weights(state, jnp.roll(products, -1, axis=-1))
            weights = _matvec(jnp.swapaxes(state.transfer, -1, -2), alpha)
        else:
            beta = _matvec(state.transfer, products)
            weights = jnp.roll(_pair_weights(state, beta), 1, axis=-1)
        return tree.cast_like(tree.add(v, tree.history_mix(state.steps, weights, ndim)), v)

    def _gain(self, state: BroydenState, beta: Array) -> Float[Array, " *batch"]:
        """``|s|^2 / (|s|^2 - s^T P r)`` of the newest step s; 1 before the first."""
        newest = jnp.arange(self.history) == state.count - 1
        square = jnp.sum(jnp.where(newest, _squares(state), 0.0), axis=-1)
        rest = square - jnp.sum(jnp.where(newest, beta, 0.0), axis=-1)
        # A secant that is singular to working precision teaches nothing: step with the old P.
        singular = jnp.abs(rest) <= 1e-3 * square
        return jnp.where(singular, 1.0, square / jnp.where(singular, 1.0, rest))

    def _remember(self, state: BroydenState, move: PyTree, row: Array, ndim: int) -> BroydenState:
        """Store a step, its row of ``gram`` and the row of ``transfer`` that gives ``b = P^T
        s``.
        """
        slot, slots = state.count, jnp.arange(self.history)
        before, here = slots < slot, slots == slot
        row = jnp.where(before, row, 0.0)
        row = jnp.where(here, tree.dot(move, move, ndim)[..., None], row)
        gram = jnp.where(here[:, None], row[..., None, :], state.gram)
        gram = jnp.where(here, row[..., None], gram)
        state = state._replace(gram=gram, count=slot + 1)
        alpha = _pair_weights(state, jnp.roll(row, -1, axis=-1))
        b = jnp.sum(state.transfer * alpha[..., None], axis=-2) + here
        return state._replace(
            steps=tree.history_set(state.steps, slot, move, ndim),
            transfer=jnp.where(here[:, None], b[..., None, :], state.transfer),
        )


def _squares(state: BroydenState) -> Float[Array, " *batch history"]:
    return jnp.diagonal(state.gram, axis1=-2, axis2=-1)


def _pair_weights(state: BroydenState, values: Array) -> Array:
    """``values_i / |s_i|^2`` for the pairs (s_i, s_{i+1}) that are complete, else 0."""
    squares = _squares(state)
    # Told by the sample's own Gram matrix: the count goes on for samples that are done.
    followed = jnp.roll(squares, -1, axis=-1) > 0
    complete = (squares > 0) & followed & (jnp.arange(values.shape[-1]) < values.shape[-1] - 1)
    return jnp.where(complete, values / jnp.where(complete, squares, 1.0), 0.0)


def _matvec(matrix: Array, vector: Array) -> Array:
    return jnp.sum(matrix * vector[..., None, :], axis=-1)
