"""Small dense solves, one per sample, written out so that they compile to elementwise
operations.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def cholesky_solve(
    matrix: Float[Array, "*batch n n"], rhs: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Solve ``matrix y = rhs`` for symmetric positive definite matrices of a few rows.

    Unrolled over n at trace time: a batched library call costs more than the arithmetic for n <=
    10. Pivots are clipped at the dtype's resolution, so that a numerically singular matrix gives a
    finite answer. Derivatives are solves with the same factor: differentiated operation by
    operation, a factorization multiplies the reciprocals of small pivots, and their roundings.
    """
    lower = _cholesky(lax.stop_gradient(matrix))
    return lax.custom_linear_solve(
        lambda y: jnp.sum(matrix * y[..., None, :], axis=-1),
        rhs,
        lambda _, b: _substitute(lower, b),
        symmetric=True,
    )


def _cholesky(matrix: Float[Array, "*batch n n"]) -> list[list[Array]]:
    """Entries of the lower factor, by row; its diagonal holds their reciprocals."""
    n = matrix.shape[-1]
    tiny = jnp.finfo(matrix.dtype).eps
    lower = [[jnp.zeros(())] * n for _ in range(n)]
    for j in range(n):
        pivot = matrix[..., j, j] - sum(lower[j][k] ** 2 for k in range(j))
        lower[j][j] = 1.0 / jnp.sqrt(jnp.maximum(pivot, tiny))
        for i in range(j + 1, n):
            inner = sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = (matrix[..., i, j] - inner) * lower[j][j]
    return lower


def _substitute(
    lower: list[list[Array]], rhs: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Forward, then back substitution, with a factor of `_cholesky`."""
    n = len(lower)
    y = [jnp.zeros(())] * n
    for j in range(n):
        y[j] = (rhs[..., j] - sum(lower[j][k] * y[k] for k in range(j))) * lower[j][j]
    for j in reversed(range(n)):
        y[j] = (y[j] - sum(lower[k][j] * y[k] for k in range(j + 1, n))) * lower[j][j]
    return jnp.stack(y, axis=-1)


def gram_solve(
    gram: Float[Array, "*batch n n"], rhs: Float[Array, "*batch n"], ridge: float | None
) -> Float[Array, "*batch n"]:
    """Solve ``(G + ridge diag(G)) y = rhs`` for Gram matrices of a few vectors; of a vector whose
    square is 0 the answer is 0.

    Vectors are scaled to unit length first. ``ridge`` None: 10 units in the last place.
    """
    info = jnp.finfo(gram.dtype)
    ridge = 10 * float(info.eps) if ridge is None else ridge
    squares = jnp.diagonal(gram, axis1=-2, axis2=-1)
    filled = squares >= info.tiny
    # The answer does not depend on the lengths, only its rounding: a constant to derivatives, whose
    # factors would leave the range of floats.
    length = lax.stop_gradient(jnp.sqrt(jnp.where(filled, squares, 1.0)))
    diagonal = jnp.where(filled, (1.0 + ridge) * squares, 1.0)
    ridged = jnp.where(jnp.eye(rhs.shape[-1], dtype=bool), diagonal[..., None], gram)
    # XLA makes a division once, and what is cheaper again for each of its uses: both end in one.
    unit = ridged / (length[..., None] * length[..., None, :])
    return cholesky_solve(unit, jnp.where(filled, rhs, 0.0) / length) / length


def hessenberg_least_squares(
    columns: Float[Array, "*batch n rows"], length: Float[Array, " *batch"]
) -> Float[Array, "*batch n"]:
    """Minimise ``||length e_1 - H y||`` for upper Hessenberg matrices H with one row more than
    columns.

    ``columns[..., j, :]`` is column j of H. Givens rotations, then back substitution; a zero pivot
    gives weight 0.
    """
    n = columns.shape[-2]
    first = jnp.arange(n + 1) == 0
    target = jnp.where(first, length[..., None], 0.0)
    table = jnp.concatenate([columns, target[..., None, :]], axis=-2)  # the last column is H's rhs

    def take(a: Array, index: Array) -> Array:
        return lax.dynamic_index_in_dim(a, index, axis=a.ndim - 1, keepdims=False)

    def rotate(j: Array, table: Array) -> Array:
        upper, lower = take(table, j), take(table, j + 1)
        a, b = take(upper, j), take(lower, j)
        radius = jnp.sqrt(a**2 + b**2)
        inverse = jnp.where(radius > 0, 1.0 / jnp.where(radius > 0, radius, 1.0), 0.0)
        c = jnp.where(radius > 0, a * inverse, 1.0)[..., None]
        s = (b * inverse)[..., None]
        table = lax.dynamic_update_index_in_dim(
            table, c * upper + s * lower, j, axis=table.ndim - 1
        )
        return lax.dynamic_update_index_in_dim(
            table, c * lower - s * upper, j + 1, axis=table.ndim - 1
        )

    table = lax.fori_loop(0, n, rotate, table)

    def substitute(i: Array, y: Array) -> Array:
        j = n - 1 - i
        row = take(table, j)
        pivot = take(row, j)
        rest = row[..., n] - jnp.sum(row[..., :n] * y, axis=-1)
        value = jnp.where(pivot != 0, rest / jnp.where(pivot != 0, pivot, 1.0), 0.0)
        return jnp.where(jnp.arange(n) == j, value[..., None], y)

    return lax.fori_loop(0, n, substitute, jnp.zeros_like(table[..., :n, 0]))
