"""Attention to positions whose keys and values are known already."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Past(NamedTuple):
    """Keys and values of the positions before a sequence, the latest last.

    Attributes:
      keys, values: float[batch, past, heads, depth].
      filled: int[batch], how many of them there are, the last ones; None: all.
    """

    keys: Float[Array, "batch past heads depth"]
    values: Float[Array, "batch past heads depth"]
    filled: Int[Array, " batch"] | None


def visible(length: int, past: Past | None) -> Bool[Array, "1|batch 1 length keys"]:
    """Which keys, the past and then the sequence, each position of a sequence may look at: its own
    and those before it.
    """
    before = 0 if past is None else past.keys.shape[1]
    seen = jnp.tri(length, before + length, before, dtype=bool)[None, None]
    if past is None or past.filled is None:
        return seen
    there = jnp.arange(before + length)[None, :] >= before - past.filled[:, None]
    return seen & there[:, None, None]


def causal_attention(
    q: Float[Array, "batch length heads depth"],
    k: Float[Array, "batch length heads depth"],
    v: Float[Array, "batch length heads depth"],
    past: Past | None = None,
) -> Float[Array, "batch length heads depth"]:
    """``softmax(q k^T / sqrt(depth)) v`` over the past and the positions up to each one's own, by
    `jax.nn.dot_product_attention`; the shape of q.
    """
    if past is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
    k = jnp.concatenate([past.keys.astype(k.dtype), k], axis=1)
    v = jnp.concatenate([past.values.astype(v.dtype), v], axis=1)
    return jax.nn.dot_product_attention(q, k, v, mask=visible(q.shape[1], past))
