"""Causal attention that knows distances, not positions, and can look back into a memory."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.layers.dropout import VariationalDropout
from jdeq.layers.past import Past, visible
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

    All matrices are weight-normalised unless told otherwise. Positions before the sequence are
    given by their keys and values, see `keys_values`. No output depends on a later position, to
    the bit (if those are finite).

    Args:
      heads: divides the width.
      dropout: rate on the attention weights, one draw per (row, head, query, key) and call.
      position_dropout: rate on the features of R, one draw per feature for all distances.
      kernel_init: distribution of the *effective* matrices.
      bias_init: distribution of r_w and r_r.
      weight_norm: False: plain matrices.
      dtype: of the computation; None: the promotion of input and parameters. The softmax is in
        float32 or wider.
    Raises:
      ValueError: when called, for a width that is no multiple of ``heads``, or shapes that do not
        fit.
    Cost (of a call): scores [batch, heads, length, past + length], twice.
    Source: Dai et al. (2019), Transformer-XL, section 3.3; the injection u of Bai, Kolter, Koltun
      (2019), Deep Equilibrium Models, section 4 and code.
    """

    heads: int
    dropout: float = 0.0
    position_dropout: float = 0.0
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    weight_norm: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "batch length width"],
        u: Float[Array, "batch length 3*width"] | None = None,
        *,
        past: Past | None = None,
    ) -> Float[Array, "batch length width"]:
        """Attend from the positions of h to the past and to themselves.

        Args:
          h: the sequence.
          u: added to queries, keys and values; None: nothing.
          past: of the positions before h; None: there are none.
        """
        self._check(h, u)
        batch, length, width = h.shape
        depth = width // self.heads
        q, k, v = self._project(h, u)
        before = 0 if past is None else past.keys.shape[1]
        if past is not None:
            k = jnp.concatenate([past.keys.astype(k.dtype), k], axis=1)
            v = jnp.concatenate([past.values.astype(v.dtype), v], axis=1)
        keys = before + length
        r = VariationalDropout(self.position_dropout, broadcast_dims=(0,))(sinusoids(keys, width))
        r = self._dense(width, "r")(r.astype(h.dtype)).reshape(keys, self.heads, depth)
        r_w, r_r = (
            self.param(name, self.bias_init, (self.heads, depth)).astype(q.dtype)
            for name in ("content_bias", "position_bias")
        )
        scores = jnp.einsum("bihd,bjhd->bhij", q + r_w, k)
        scores += relative_shift(jnp.einsum("bihd,chd->bhic", q + r_r, r.astype(q.dtype)))
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / depth**0.5
        seen = visible(length, past)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(v.dtype)
        weights = VariationalDropout(self.dropout)(weights)
        mixed = jnp.einsum("bhij,bjhd->bihd", weights, v)
        return self._dense(width, "out", use_bias=True)(mixed.reshape(batch, length, width))

    @nn.compact
    def keys_values(
        self,
        h: Float[Array, "batch length width"],
        u: Float[Array, "batch length 3*width"] | None = None,
    ) -> tuple[Array, Array]:
        """Keys and values of these positions, float[batch, length, heads, width / heads] each, for
        a `Past`."""
        self._check(h, u)
        _, k, v = self._project(h, u)
        return k, v

    def _project(self, h: Array, u: Array | None) -> Array:
        """Queries, keys and values, [3, batch, length, heads, width / heads]."""
        batch, length, width = h.shape
        qkv = self._dense(3 * width, "qkv")(h)
        qkv = qkv if u is None else qkv + u.astype(qkv.dtype)
        split = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        return jnp.moveaxis(split, 2, 0)

    def _dense(self, features: int, name: str, *, use_bias: bool = False) -> nn.Module:
        dense = WeightNormDense if self.weight_norm else nn.Dense
        return dense(features, use_bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name)

    def _check(self, h: Array, u: Array | None) -> None:
        name = "jdeq.layers.RelativeAttention"
        if h.ndim != 3 or h.shape[-1] % self.heads:
            raise ValueError(
                f"{name}: h must be [batch, length, width], the width a multiple of heads "
                f"({self.heads}); got shape {h.shape}"
            )
        want = (*h.shape[:2], 3 * h.shape[2])
        if u is not None and u.shape != want:
            raise ValueError(f"{name}: u must have the shape {want}; got {u.shape}")
