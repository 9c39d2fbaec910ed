"""A plain modern decoder block as the map of an implicit layer: the default for new text models.

    h1 = z + x;  h2 = h1 + Attention(norm(h1));  h3 = h2 + SwiGLU(norm(h2));  f(z, x) = norm(h3)

The norm at the end holds the state at unit scale, as the injection x is at the start of training:
h3 is about twice as long as either, and the division by its length makes f a contraction.
Sources: RMSNorm, Zhang and Sennrich (2019), arXiv 1910.07467; RoPE, Su et al. (2021), arXiv
2104.09864; SwiGLU, Shazeer (2020), arXiv 2002.05202; a norm at the end, Bai, Kolter, Koltun (2019).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq.layers import Past, causal_attention
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.kept import attention_cache
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.types import Solution, require_integer

_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderDEQConfig:
    """What a `DecoderDEQLM` is made of.

    Args:
      vocab_size: tokens are 0..vocab_size - 1.
      width: of the state of a token; a multiple of ``2 heads``.
      heads: of the attention, >= 1.
      hidden: units of the gated layer, >= 1.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    vocab_size: int
    width: int
    heads: int
    hidden: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require_integer("jdeq.models.DecoderDEQConfig", name, value, 1)
        if self.width % (2 * self.heads):
            raise ValueError(
                "jdeq.models.DecoderDEQConfig: width must be a multiple of 2 heads "
                f"({2 * self.heads}); got {self.width}"
            )


DECODER_DEQ_BYTES = DecoderDEQConfig(vocab_size=256, width=512, heads=8, hidden=2048)
"""For text as bytes: 4.5M parameters; nothing published to compare with."""


def rotate(
    x: Float[Array, "batch length heads depth"], start: int = 0
) -> Float[Array, "batch length heads depth"]:
    """RoPE: the pair ``(x[i], x[i + depth / 2])`` of position t, which is ``start`` for the first,
    turned by the angle ``t 10000^(-2 i / depth)``.

    Angles in float32; the result in the dtype of x.
    """
    length, half = x.shape[1], x.shape[3] // 2
    rates = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (start + jnp.arange(length, dtype=jnp.float32))[:, None] * rates[None, :]
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class DecoderInjection(NamedTuple):
    """The x of a `DecoderCell`.

    Attributes:
      token: float[batch, length, width], the embedded tokens.
      past: keys, rotated, and values of the positions before; None: nothing stands there.
    """

    token: Float[Array, "batch length width"]
    past: Past | None


class DecoderCell(nn.Module):
    """``h = z + x; h = h + Attention(norm(h)); h = h + SwiGLU(norm(h)); norm(h)``, causal.

    RMSNorm with a gain, RoPE, no biases, ``SwiGLU(h) = W_down (silu(W_gate h) * W_up h)``.

    Args (of a call):
      z: float[batch, length, width].
      x: the injection, and the past.
    Returns:
      the shape of z.
    """

    heads: int
    hidden: int
    dtype: Any = None

    def initial_state(self, x: DecoderInjection) -> Float[Array, "batch length width"]:
        """Zeros like the tokens' embeddings."""
        return jnp.zeros_like(x.token)

    @nn.compact
    def __call__(self, z, x: DecoderInjection):
        h = z + x.token
        q, k, v = self._project(h)
        start = 0 if x.past is None else x.past.keys.shape[1]
        attended = causal_attention(rotate(q, start), rotate(k, start), v, x.past)
        h = h + self._dense(z.shape[-1], "out")(attended.reshape(h.shape))
        gate_up = self._dense(2 * self.hidden, "gate_up")(self._norm("norm2")(h))
        gate, up = jnp.split(gate_up, 2, axis=-1)
        h = h + self._dense(z.shape[-1], "down")(nn.silu(gate) * up)
        return self._norm("norm3")(h)

    @nn.compact
    def keys_values(self, z, token) -> tuple[Array, Array]:
        """Of positions whose equilibrium is z, not rotated: [batch, length, heads, depth] each."""
        _, k, v = self._project(z + token)
        return k, v

    def _project(self, h) -> Array:
        """Queries, keys and values, [3, batch, length, heads, depth]."""
        batch, length, width = h.shape
        qkv = self._dense(3 * width, "qkv")(self._norm("norm1")(h))
        split = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        return jnp.moveaxis(split, 2, 0)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, use_bias=False, kernel_init=_kernel, dtype=self.dtype, name=name)

    def _norm(self, name: str) -> nn.RMSNorm:
        return nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name=name)


class DecoderDEQLM(EquilibriumModel):
    """Token embedding, one implicit `DecoderCell`, an untied linear head.

    `jdeq.models.generate` keeps keys and values in the collection "cache".

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      causal: each position stops, and is counted, for itself, so that no output depends on a later
        token at any budget; False takes a window as one sample.
      dtype: of the computation and the state; None: that of the parameters.
    """

    config: DecoderDEQConfig
    max_steps: int = 24
    causal: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch length vocab"], Solution]:
        """Logits of the token after each, and the solve.

        Args:
          tokens: ids in 0..vocab_size - 1; the logits after another id are NaN.
          train: changes nothing: there is no dropout.
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, length, vocab_size]; a Solution with a state
          [batch, length, width] and, if ``causal``, statistics [batch, length], else [batch].
        Raises:
          ValueError: for tokens of another rank or dtype.
        Cost: sol.stats.nfe evaluations of the cell.
        """
        del train
        config = self.config
        tokens, known = known_tokens("jdeq.models.DecoderDEQLM", tokens, config.vocab_size)
        unit = nn.initializers.normal(1.0)
        x = nn.Embed(config.vocab_size, config.width, embedding_init=unit, name="token")(tokens)
        x = x if self.dtype is None else x.astype(self.dtype)
        cache, past = attention_cache(self, x, config.heads, config.width), None
        if cache.filled is not None:
            past = Past(rotate(cache.past["keys0"]), cache.past["values0"], cache.filled)
        cell = DecoderCell(config.heads, config.hidden, self.dtype, name="cell")
        solution = equilibrium_layer(self, cell, name="block", causal=self.causal)(
            DecoderInjection(x, past), probe=probe
        )
        if past is not None:
            keys, values = cell.keys_values(solution.z, x)
            cache.write({"keys0": keys, "values0": values})
        z = solution.z.astype(jnp.promote_types(solution.z.dtype, jnp.float32))
        head = nn.Dense(config.vocab_size, use_bias=False, kernel_init=_kernel, name="head")
        return mark_unknown(head(z), known), solution
