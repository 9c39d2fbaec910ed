"""The DEQ-Transformer language model: one Transformer-XL block as the map of an implicit layer.

    u = W_inj embed(tokens) + b;  attn = Attention([z_memory; z], [u_memory; u])
    a = LN(attn + z);  f(z, u) = LN(FFN(a) + a)          (pre-norm: FFN(a) + a, attn of LN(z))

The memory is the equilibrium of the segments before, and their u. LayerNorms have no parameters.
Source: Bai, Kolter, Koltun (2019), Deep Equilibrium Models, arXiv 1909.01377, section 4; Bai,
Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization, section 5.2, and
their code, after which pre-norm's feed-forward layer adds to its *normalised* input.
Deviations: solved causally, each position for itself (see ``causal``); deviations of weights are
given for the published width of 700 and scaled to others by 1 / sqrt(width). The code draws the
weight-normalised matrices from N(0, 0.01^2), which their gains undo: what it multiplies by has
variance 1 / (3 fan_in), 0.022 at 700, and that is what is drawn here.

Configurations: deq_transformer_config.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq.layers import (
    AdaptiveEmbedding,
    Past,
    RelativeAttention,
    VariationalDropout,
    WeightNormDense,
)
from jdeq.models.deq_transformer_config import DEQTransformerConfig
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.kept import Kept, attention_cache
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.types import Solution

_effective = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")  # 0.022 at width 700


def published_normal(width: int) -> Any:
    """N(0, 0.01^2) at the published width of 700."""
    return nn.initializers.normal(0.01 * (700 / width) ** 0.5)


class TransformerBlock(nn.Module):
    """``a = LN(attn + z); LN(FFN(a) + a)``, or, with ``config.pre_norm``, attention on LN(z) and
    ``FFN(a) + a``. ``FFN(a) = W_2 relu(W_1 a + b_1) + b_2``; every matrix is weight-normalised
    unless ``config.weight_norm`` is False.

    Args (of a call):
      z: float[batch, length, width].
      u: float[batch, length, 3 width], added to Q, K and V; None: nothing.
      past: of the positions before z, see `keys_values`; None: there are none.
    Returns:
      the shape of z.
    """

    config: DEQTransformerConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, z, u=None, past: Past | None = None):
        config = self.config
        drop = functools.partial(VariationalDropout, config.dropout, broadcast_dims=(1,))
        layer = WeightNormDense if config.weight_norm else nn.Dense
        dense = functools.partial(layer, kernel_init=_effective, dtype=self.dtype)
        attended = self._attention()(self._attention_input(z), u, past=past)
        a = self._norm(drop()(attended) + z)
        hidden = drop()(nn.relu(dense(config.hidden, name="up")(a)))
        out = drop()(dense(config.width, name="down")(hidden)) + a
        return out if config.pre_norm else self._norm(out)

    @nn.compact
    def keys_values(self, z, u=None) -> tuple[Array, Array]:
        """What later positions attend to, float[batch, length, heads, width / heads] twice."""
        return self._attention().keys_values(self._attention_input(z), u)

    def _attention(self) -> RelativeAttention:
        config = self.config
        return RelativeAttention(
            config.heads,
            dropout=config.attention_dropout,
            position_dropout=config.dropout,
            kernel_init=_effective,
            bias_init=published_normal(config.width),
            weight_norm=config.weight_norm,
            dtype=self.dtype,
            name="attention",
        )

    def _attention_input(self, z):
        return self._norm(z) if self.config.pre_norm else z

    def _norm(self, z):
        norm = nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype)
        return norm(z)


class Injection(NamedTuple):
    """The x of a `DEQTransformerCell`.

    Attributes:
      u: float[batch, length, 3 width], added to queries, keys and values.
      past: keys and values of the positions before.
    """

    u: Float[Array, "batch length 3*width"]
    past: Past


class DEQTransformerCell(nn.Module):
    """The map ``z <- f(z, x)``, one `TransformerBlock` with x an `Injection`; causal.

    Args (of a call):
      z: float[batch, length, width].
    Returns:
      the shape of z.
    """

    config: DEQTransformerConfig
    dtype: Any = None

    def initial_state(self, x: Injection) -> Float[Array, "batch length width"]:
        """Zeros, in the dtype of u."""
        return jnp.zeros((*x.u.shape[:2], self.config.width), x.u.dtype)

    @nn.compact
    def __call__(self, z, x: Injection):
        return self._block()(z, x.u, x.past)

    @nn.compact
    def keys_values(self, z, u) -> tuple[Array, Array]:
        """Of positions whose equilibrium is z, for the `Past` of later ones."""
        return self._block().keys_values(z, u)

    def _block(self) -> TransformerBlock:
        return TransformerBlock(self.config, self.dtype, name="block")


class DEQTransformerLM(EquilibriumModel):
    """Adaptive embedding, one implicit Transformer-XL block, the adaptive softmax tied to it.

    The memory lives in the collection "memory" and takes part where that is mutable, as in a
    training step; `jdeq.models.generate` has a "cache" of keys and values in its place (see
    `jdeq.models.kept`). The published pre-training by a few
    weight-tied layers: ``model.clone(solver=Picard(), gradient=Unrolled(), max_steps=layers)``.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      causal: each position stops, and is counted, for itself, so that no output depends on a later
        token at any budget; False takes a segment as one sample.
      dtype: of the computation and the state; None: that of the parameters.
    """

    config: DEQTransformerConfig
    max_steps: int = 30
    causal: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        train: bool = False,
        probe=None,
        labels: Int[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length *vocab"], Solution]:
        """Log-probabilities of the token after each, and the solve.

        Args:
          tokens: ids in 0..vocab_size - 1; what follows another id is NaN.
          train: changes nothing: dropout is on where a 'dropout' rng is given.
          probe: see ``jdeq.backward_probe``.
          labels: the tokens after each, negative where there is none to predict.
        Returns:
          without labels log-probabilities float32[batch, length, vocab_size], which are logits of
          themselves; with labels their losses in nats, float32[batch, length], 0 where negative; a
          Solution with a state [batch, length, width] and, if ``causal``, statistics [batch,
          length], else [batch].
        Raises:
          ValueError: for tokens of another rank or dtype, or a memory of another batch.
        Cost: sol.stats.nfe evaluations of the cell. The softmax: with labels see
          `jdeq.layers.AdaptiveEmbedding.losses`, without ``4 vocab_size`` bytes a token, several
          times (9 GB each for a batch of the published run).
        """
        del train
        config = self.config
        tokens, known = known_tokens("jdeq.models.DEQTransformerLM", tokens, config.vocab_size)
        embedding, e = embed(config, self.dtype, tokens)
        inject = nn.Dense(
            3 * config.width,
            kernel_init=published_normal(config.width),
            dtype=self.dtype,
            name="inject",
        )
        u = inject(e)
        cell = DEQTransformerCell(config, self.dtype, name="cell")
        cache = attention_cache(self, u, config.heads, config.width)
        generating = cache.filled is not None
        memory = Kept(self, "memory", {"z": e, "u": u}, length=0 if generating else config.memory)
        if generating:
            past = Past(cache.past["keys0"], cache.past["values0"], cache.filled)
        else:
            past = Past(*cell.keys_values(memory.past["z"], memory.past["u"]), memory.filled)
        solution = equilibrium_layer(self, cell, name="deq", causal=self.causal)(
            Injection(u, past), probe=probe
        )
        memory.write({"z": solution.z, "u": u})
        if generating:
            keys, values = cell.keys_values(solution.z, u)
            cache.write({"keys0": keys, "values0": values})
        return mark_unknown(predict(config, embedding, solution.z, labels), known), solution


def embed(
    config: DEQTransformerConfig, dtype: Any, tokens: Array
) -> tuple[AdaptiveEmbedding, Float[Array, "batch length width"]]:
    """The vocabulary of a model and its embeddings of the tokens, with dropout."""
    embedding = AdaptiveEmbedding(
        config.vocab_size,
        config.width,
        config.cutoffs,
        config.divisor,
        weight_init=published_normal(config.width),
        dtype=dtype,
        name="embedding",
    )
    return embedding, VariationalDropout(config.dropout, broadcast_dims=(1,))(embedding(tokens))


def predict(
    config: DEQTransformerConfig, embedding: AdaptiveEmbedding, h: Array, labels: Array | None
) -> Float[Array, "batch length *vocab"]:
    """Log-probabilities of all tokens, or the losses of the labels, with dropout on h."""
    h = VariationalDropout(config.dropout, broadcast_dims=(1,))(h)
    return embedding.log_probs(h) if labels is None else embedding.losses(h, labels)
