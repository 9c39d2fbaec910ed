"""Per-sample algebra on pytrees: the first ``ndim`` axes of every leaf index samples.

Scalars of a sample have the shape of the batch. Reductions accumulate in float32 or wider, at full
precision also on devices whose matrix units round float32 by default.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

_FUSED_SLOTS = 6
"""A sum of so few slots is fused with what is made of it; of more, a product of matrices is faster
(on a CPU)."""


def accumulator(tree: PyTree) -> jnp.dtype:
    """The dtype of residuals, Gram matrices and small solves: float32, or float64 if a leaf has
    it.
    """
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(tree)))


def batch_shape(tree: PyTree, ndim: int) -> tuple[int, ...]:
    """Shape of the sample axes."""
    return jax.tree.leaves(tree)[0].shape[:ndim]


def sample_size(tree: PyTree, ndim: int) -> int:
    """Number of entries of one sample, d."""
    return sum(math.prod(leaf.shape[ndim:]) for leaf in jax.tree.leaves(tree))


def expand(scalars: Array, leaf: Array) -> Array:
    """Append axes to per-sample scalars until they broadcast against ``leaf``."""
    return lax.expand_dims(scalars, range(scalars.ndim, leaf.ndim))


def scale(scalars: Array, tree: PyTree) -> PyTree:
    """``scalars * tree`` per sample, in the tree's dtypes."""
    return jax.tree.map(lambda a: (expand(scalars, a) * a).astype(a.dtype), tree)


def divide(tree: PyTree, scalars: Array) -> PyTree:
    """``tree / scalars`` per sample, in the tree's dtypes: their reciprocals may overflow."""
    return jax.tree.map(lambda a: (a / expand(scalars, a)).astype(a.dtype), tree)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """``a - b``."""
    return jax.tree.map(jnp.subtract, a, b)


def add(a: PyTree, b: PyTree) -> PyTree:
    """``a + b``."""
    return jax.tree.map(jnp.add, a, b)


def finite(a: PyTree, ndim: int) -> Bool[Array, " *batch"]:
    """Whether every entry of a sample is."""
    return functools.reduce(
        jnp.logical_and,
        (jnp.isfinite(leaf).all(axis=tuple(range(ndim, leaf.ndim))) for leaf in jax.tree.leaves(a)),
    )


def select(mask: Bool[Array, " *batch"], a: PyTree, b: PyTree) -> PyTree:
    """``a`` where the sample's mask is true, else ``b``; leaves without sample axes come from
    ``a``.
    """
    return jax.tree.map(
        lambda x, y: x if x.ndim < mask.ndim else jnp.where(expand(mask, x), x, y), a, b
    )


def take(tree: PyTree, rows: Int[Array, " rows"], ndim: int) -> PyTree:
    """The entries ``rows`` of the first sample axis; leaves without sample axes as they are."""
    return jax.tree.map(lambda a: a if a.ndim < ndim else a[rows], tree)


def put(tree: PyTree, rows: Int[Array, " rows"], new: PyTree, ndim: int) -> PyTree:
    """``tree`` with the entries ``rows`` of the first sample axis replaced by ``new``."""
    return jax.tree.map(lambda a, b: b if a.ndim < ndim else a.at[rows].set(b), tree, new)


def dot(a: PyTree, b: PyTree, ndim: int) -> Float[Array, " *batch"]:
    """Inner product of each sample of ``a`` with the same sample of ``b``."""
    dtype = accumulator(a)
    parts = [
        jnp.sum(x.astype(dtype) * y.astype(dtype), axis=tuple(range(ndim, x.ndim)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(parts[1:], parts[0])


def largest(a: PyTree, ndim: int) -> Float[Array, " *batch"]:
    """Largest absolute entry of each sample."""
    dtype = accumulator(a)
    parts = [
        jnp.max(jnp.abs(x.astype(dtype)), axis=tuple(range(ndim, x.ndim)), initial=0.0)
        for x in jax.tree.leaves(a)
    ]
    return functools.reduce(jnp.maximum, parts)


def norm(a: PyTree, ndim: int) -> Float[Array, " *batch"]:
    """Euclidean norm of each sample."""
    return jnp.sqrt(dot(a, a, ndim))


def unit(largest: Float[Array, " *batch"]) -> Float[Array, " *batch"]:
    """What to divide entries by before they are squared; 1 for those that are 0 or not finite."""
    return jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1.0)


def relative(a: PyTree, b: PyTree, ndim: int) -> Float[Array, " *batch"]:
    """``||a - b|| / ||a||`` per sample, with 0 / 0 = 0, also of entries whose squares leave the
    range of floats.
    """
    by = unit(jnp.maximum(largest(a, ndim), largest(b, ndim)))
    a, b = divide(a, by), divide(b, by)
    return ratio(norm(subtract(a, b), ndim), norm(a, ndim))


def ratio(absolute: Float[Array, " *batch"], size: Float[Array, " *batch"]) -> Array:
    """``absolute / size`` with 0 / 0 = 0: a fixed point at the origin is exact."""
    return jnp.where(absolute == 0, 0.0, absolute / jnp.where(absolute == 0, 1.0, size))


def normal_like(key: Array, like: PyTree, dtype: jnp.dtype | None = None) -> PyTree:
    """Independent standard normal entries in the shapes of ``like``, and its dtypes unless one is
    given.
    """
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [
        _placed_like(jax.random.normal(k, a.shape, dtype or a.dtype), a)
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)


def _placed_like(a: Array, like: Array) -> Array:
    sharding = jax.typeof(like).sharding
    if all(axis is None for axis in sharding.spec):
        return a
    return jax.sharding.reshard(a, sharding)


def history(tree: PyTree, depth: int, ndim: int) -> PyTree:
    """Room for ``depth`` copies of every sample, zero-filled: leaves ``[*batch, depth, ...]``."""
    # Built from the leaf, not from its shape, so that it is sharded and replicated like it.
    return jax.tree.map(
        lambda a: jnp.zeros_like(jnp.repeat(jnp.expand_dims(a, ndim), depth, axis=ndim)), tree
    )


def no_products(tree: PyTree, depth: int, ndim: int) -> Float[Array, " *batch depth"]:
    """`history_dot` with an empty history: zeros, without a product of as many."""
    return jnp.zeros_like(jnp.repeat(dot(tree, tree, ndim)[..., None], depth, axis=-1))


def history_set(past: PyTree, slot: Int[Array, ""], tree: PyTree, ndim: int) -> PyTree:
    """Overwrite one slot, in place inside a compiled loop."""
    return jax.tree.map(
        lambda h, a: lax.dynamic_update_index_in_dim(h, a.astype(h.dtype), slot, axis=ndim),
        past,
        tree,
    )


def history_dot(past: PyTree, tree: PyTree, ndim: int) -> Float[Array, " *batch depth"]:
    """Inner products of every slot with ``tree``, per sample."""
    dtype = accumulator(tree)

    def leaf_dot(h: Array, a: Array) -> Array:
        batch = tuple(range(ndim))
        contract = (tuple(range(ndim + 1, h.ndim)), tuple(range(ndim, a.ndim)))
        return lax.dot_general(
            h,
            a.astype(h.dtype),
            (contract, (batch, batch)),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=dtype,
            out_sharding=_sample_sharding(a, ndim),
        )

    parts = [
        leaf_dot(h, a) for h, a in zip(jax.tree.leaves(past), jax.tree.leaves(tree), strict=True)
    ]
    return sum(parts[1:], parts[0])


def _sample_sharding(a: Array, ndim: int) -> jax.NamedSharding | None:
    """Where ``[*batch, depth]`` scalars of ``a`` lie on a mesh with explicit axes; else None."""
    sharding = jax.typeof(a).sharding
    if all(axis is None for axis in sharding.spec):
        return None
    return jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[:ndim], None))


def history_mix(past: PyTree, weights: Float[Array, " *batch depth"], ndim: int) -> PyTree:
    """``sum_i weights_i past_i``, per sample, in the accumulator's dtype."""
    mix = history_sum if weights.shape[-1] <= _FUSED_SLOTS else history_product
    return mix(past, weights, ndim)


def history_sum(past: PyTree, weights: Float[Array, " *batch depth"], ndim: int) -> PyTree:
    """`history_mix` as a sum over slots, which is fused with what is made of it."""
    dtype = accumulator(past)

    def leaf_sum(h: Array) -> Array:
        slots = [lax.index_in_dim(h, i, ndim, keepdims=False) for i in range(h.shape[ndim])]
        terms = [expand(weights[..., i], a) * a.astype(dtype) for i, a in enumerate(slots)]
        return sum(terms[1:], terms[0])

    return jax.tree.map(leaf_sum, past)


def history_product(past: PyTree, weights: Float[Array, " *batch depth"], ndim: int) -> PyTree:
    """`history_mix` as a product of matrices, which is computed once however often it is used."""
    dtype, batch = accumulator(past), tuple(range(ndim))

    def leaf_product(h: Array) -> Array:
        return lax.dot_general(
            weights.astype(h.dtype),
            h,
            (((ndim,), (ndim,)), (batch, batch)),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=dtype,
        )

    return jax.tree.map(leaf_product, past)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` in the dtypes of ``like``."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """Mesh axes over which a leaf varies inside shard_map; none elsewhere."""
    marks = [jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree)]
    return frozenset().union(*marks)


def vary(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """``tree`` with every leaf marked as varying over at least ``axes``."""

    def mark(a: Array) -> Array:
        missing = tuple(axes - jax.typeof(a).manual_axis_type.varying)
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(mark, tree)


def counter() -> Array:
    """0, on the mesh of the context: a plain constant cannot be carried by a mapped loop there."""
    return jnp.zeros((), jnp.int32) + jnp.zeros((), jnp.int32)
