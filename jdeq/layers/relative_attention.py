"""Causal attention that knows distances, not positions, and can look back into a memory."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq.layers.dropout import VariationalDropout
from jdeq.layers.weight_norm import Initializer, WeightNormDense


def sinusoids(count: int, width: int) -> Float[Array, "count width"]:
    """``R[c] = [sin(w d), cos(w d)]`` of the distances ``d = count - 1 - c``, descending to 0,
    with the frequencies ``w[i] = 10000^(-2 i / width)``; float32. An odd width lacks the last
    cosine.

    Source: Vaswani et al. (2017), section 3.5, in the order of Dai et al. (2019).
    """
    distances = jnp.arange(count - 1, -1, -1, dtype=jnp.float32)
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distances[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


def relative_shift(scores: Float[Array, "... queries keys"]) -> Float[Array, "... queries keys"]:
    """``y[i, j] = scores[i, j + queries - 1 - i]``: from columns of distances to columns of keys.

    Column c of ``scores`` belongs to distance ``keys - 1 - c``; the last query stands at the last
    key. Where key j lies after query i the result means nothing and has to be masked.

    Cost: one padded copy. No gather: a row is read one column further on than the one below it.
    Source: Dai et al. (2019), Transformer-XL, appendix B.
    """
    *lead, queries, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(1, 0)])
    return padded.reshape(*lead, keys + 1, queries)[..., 1:, :].reshape(scores.shape)


class RelativeAttention(nn.Module):
    """Multi-head causal attention with content and position scores,

        q, k, v = h W_qkv + u;  a[i, j] = ((q[i] + r_w) k[j] + (q[i] + r_r) R[i - j] W_r) / sqrt(d)
        y = softmax_j(a) v W_o + b_o

    All matrices are weight-normalised. The first ``memory`` positions are keys and values only. No
    output depends on a later position, to the bit (if those are finite).

    Args:
      heads: divides the width.
      dropout: rate on the attention weights, one draw per (row, head, query, key) and call.
      position_dropout: rate on the features of R, one draw per feature for all distances.
      kernel_init: distribution of the *effective* matrices.
      bias_init: distribution of r_w and r_r.
      dtype: of the computation; None: the promotion of input and parameters. The softmax is in
        float32 or wider.
    Raises:
      ValueError: when called, for a width that is no multiple of ``heads``, shapes that do not
        fit, or no position beside the memory.
    Cost (of a call): scores [batch, heads, length, memory + length], twice.
    Source: Dai et al. (2019), Transformer-XL, section 3.3; the injection u of Bai, Kolter, Koltun
      (2019), Deep Equilibrium Models, section 4 and code.
    """

    heads: int
    dropout: float = 0.0
    position_dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch keys width"],
        u: Float[Array, "batch keys 3*width"] | None = None,
        *,
        memory: int = 0,
        filled: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """Attend from the last ``keys - memory`` positions.

        Args:
          h: the memory, then the sequence.
          u: added to queries, keys and values; None: nothing.
          memory: how many of the keys are memory, >= 0.
          filled: how many of those may be looked at, the latest ones; None: all.
        """
        self._check(h, u, memory)
        batch, keys, width = h.shape
        depth = width // self.heads

        def dense(features, name, use_bias=False):
            return WeightNormDense(
                features, use_bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name
            )

        qkv = dense(3 * width, "qkv")(h)
        qkv = qkv if u is None else qkv + u.astype(qkv.dtype)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, keys, 3, self.heads, depth), 2, 0)
        q = q[:, memory:]
        r = VariationalDropout(self.position_dropout, broadcast_dims=(0,))(sinusoids(keys, width))
        r = dense(width, "r")(r.astype(h.dtype)).reshape(keys, self.heads, depth)
        r_w, r_r = (
            self.param(name, self.bias_init, (self.heads, depth)).astype(q.dtype)
            for name in ("content_bias", "position_bias")
        )
        scores = jnp.einsum("bihd,bjhd->bhij", q + r_w, k)
        scores += relative_shift(jnp.einsum("bihd,chd->bhic", q + r_r, r.astype(q.dtype)))
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / depth**0.5

        seen = jnp.tri(keys - memory, keys, memory, dtype=bool)[None, None]
        if filled is not None:
            slots = jnp.arange(keys)[None, :] >= memory - filled[:, None]
            seen = seen & slots[:, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(v.dtype)
        weights = VariationalDropout(self.dropout)(weights)
        mixed = jnp.einsum("bhij,bjhd->bihd", weights, v)
        return dense(width, "out", use_bias=True)(mixed.reshape(batch, keys - memory, width))

    def _check(self, h: Array, u: Array | None, memory: int) -> None:
        name = "jdeq.layers.RelativeAttention"
        if h.ndim != 3 or h.shape[-1] % self.heads:
            raise ValueError(
                f"{name}: h must be [batch, keys, width], the width a multiple of heads "
                f"({self.heads}); got shape {h.shape}"
            )
        if not 0 <= memory < h.shape[1]:
            raise ValueError(
                f"{name}: memory must be >= 0 and less than the {h.shape[1]} keys; got {memory}"
            )
        want = (*h.shape[:2], 3 * h.shape[2])
        if u is not None and u.shape != want:
            raise ValueError(f"{name}: u must have the shape {want}; got {u.shape}")
