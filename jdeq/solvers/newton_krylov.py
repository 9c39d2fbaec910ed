"""Newton's method with a GMRES inner solve, per sample."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jdeq import tree
from jdeq.solvers.small import hessenberg_least_squares
from jdeq.types import Map, Solver, require_integer


class NewtonKrylovState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)
    products: Int[Array, " *batch"]  # Jacobian products of the latest step


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Solver):
    """Newton-GMRES, ``z <- z + s`` with ``(I - J) s = f(z) - z`` solved by GMRES on jvps of f.

    Converges quadratically near a fixed point where I - J is invertible, whatever the spectral
    radius of J. On an affine map (the adjoint system) one step is GMRES itself. Each sample has
    its own Krylov space and its own inner stop.

    Args:
      inner_steps: most Jacobian products of one step, >= 1.
      inner_rtol: the inner solve stops at this fraction of the residual; in (0, 1).
    Raises:
      ValueError: when built, for values outside these ranges.
    Cost: per step two evaluations of f (linearization, new iterate) and up to ``inner_steps``
      products; nfe counts each product as one evaluation. inner_steps + 4 copies of z and one
      evaluation's activations.
    Source: Saad and Schultz (1986), GMRES, SIAM J. Sci. Stat. Comput. 7; Knoll and Keyes (2004),
      Jacobian-free Newton-Krylov methods, J. Comput. Phys. 193. Deviation: the residual of the
      inner solve comes from the left null vector of the Hessenberg matrix, not from Givens
      rotations.
    """

    inner_steps: int = 30
    inner_rtol: float = 1e-2

    def __post_init__(self):
        require_integer("jdeq.NewtonKrylov", "inner_steps", self.inner_steps, 1)
        if not 0.0 < self.inner_rtol < 1.0:
            raise ValueError(
                f"jdeq.NewtonKrylov: inner_rtol must lie in (0, 1); got {self.inner_rtol}"
            )

    def init(self, f: Map, z: PyTree, *, ndim: int) -> NewtonKrylovState:
        fz = f(z)
        nothing = jnp.zeros_like(tree.dot(fz, fz, ndim), jnp.int32)
        return NewtonKrylovState(z, fz, nothing)

    def step(self, f: Map, state: NewtonKrylovState, *, ndim: int) -> NewtonKrylovState:
        _, jacobian_product = jax.linearize(f, state.z)
        residual = tree.subtract(state.fz, state.z)
        unit = tree.unit(tree.largest(residual, ndim))  # whose square is in the range of floats
        move, products = gmres(
            lambda v: tree.subtract(v, jacobian_product(v)),
            tree.divide(residual, unit),
            steps=self.inner_steps,
            rtol=self.inner_rtol,
            ndim=ndim,
        )
        z = tree.cast_like(tree.add(state.z, tree.scale(unit, move)), state.z)
        return NewtonKrylovState(z, f(z), products)

    def cost(self, state: NewtonKrylovState) -> Int[Array, " *batch"]:
        # The first evaluation has no linearization before it.
        return jnp.where(state.products > 0, state.products + 2, 1)


class _Krylov(NamedTuple):
    step: Int[Array, ""]
    basis: PyTree  # float[*batch, steps + 1, ...]  orthonormal
    hessenberg: Float[Array, "*batch steps rows"]  # column j of the Hessenberg matrix is row j here
    null: Float[Array, "*batch rows"]  # left null vector of the Hessenberg matrix
    running: Bool[Array, " *batch"]
    products: Int[Array, " *batch"]


def gmres(
    operator: Map, rhs: PyTree, *, steps: int, rtol: float, ndim: int
) -> tuple[PyTree, Int[Array, " *batch"]]:
    """Minimise ``||rhs - operator(s)||`` over a Krylov space of each sample, from s = 0.

    Returns s and the number of products per sample. Cost: steps + 1 copies of rhs; two passes of
    Gram-Schmidt, four reads of the basis a product.
    """
    length = tree.norm(rhs, ndim)
    first = tree.scale(_reciprocal(length), rhs)
    basis = tree.history_set(tree.history(rhs, steps + 1, ndim), tree.counter(), first, ndim)
    rows = jnp.zeros_like(tree.history_dot(basis, rhs, ndim))
    krylov = _Krylov(
        step=tree.counter(),
        basis=basis,
        hessenberg=jnp.repeat(rows[..., None, :], steps, axis=-2),
        null=rows.at[..., 0].set(1.0),
        running=length > 0,
        products=jnp.zeros_like(length, jnp.int32),
    )

    def extend(k: _Krylov) -> _Krylov:
        v = jax.tree.map(
            lambda h: lax.dynamic_index_in_dim(h, k.step, axis=ndim, keepdims=False), k.basis
        )
        w = operator(v)
        column = jnp.zeros_like(rows)
        for _ in range(2):  # once is not enough in float32
            h = tree.history_dot(k.basis, w, ndim)
            w = tree.cast_like(tree.subtract(w, tree.history_mix(k.basis, h, ndim)), v)
            column = column + h
        height = tree.norm(w, ndim)
        inverse = _reciprocal(height)
        basis = tree.history_set(k.basis, k.step + 1, tree.scale(inverse, w), ndim)
        # null^T H = 0 column by column; the residual is |rhs| / |null|.
        entry = -jnp.sum(k.null * column, axis=-1) * inverse
        next_row = jnp.arange(steps + 1) == k.step + 1
        null = jnp.where(next_row, entry[..., None], k.null)
        column = jnp.where(next_row, height[..., None], column)
        here = jnp.arange(steps) == k.step
        mask = here & k.running[..., None]
        hessenberg = jnp.where(mask[..., None], column[..., None, :], k.hessenberg)
        reached = jnp.sum(null**2, axis=-1) * rtol**2 >= 1.0
        return _Krylov(
            step=k.step + 1,
            basis=basis,
            hessenberg=hessenberg,
            null=jnp.where(k.running[..., None], null, k.null),
            running=k.running & ~reached & (height > 0),
            products=k.products + k.running,
        )

    krylov = lax.while_loop(lambda k: (k.step < steps) & jnp.any(k.running), extend, krylov)
    return _minimise(krylov, length, steps, ndim), krylov.products


def _minimise(krylov: _Krylov, length: Array, steps: int, ndim: int) -> PyTree:
    """Least squares in the Krylov space; columns never built get weight 0."""
    unused = jnp.arange(steps) >= krylov.products[..., None]
    shifted = jnp.eye(steps, steps + 1, k=1, dtype=length.dtype)
    columns = jnp.where(unused[..., None], shifted, krylov.hessenberg)
    weights = hessenberg_least_squares(columns, length)
    padded = jnp.concatenate([weights, jnp.zeros_like(weights[..., :1])], axis=-1)
    return tree.history_mix(krylov.basis, padded, ndim)


def _reciprocal(a: Array) -> Array:
    return jnp.where(a > 0, 1.0 / jnp.where(a > 0, a, 1.0), 0.0)
