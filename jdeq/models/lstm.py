"""The LSTM language model: a baseline without an equilibrium.

Source: Hochreiter and Schmidhuber (1997), Long Short-Term Memory, with the forget gate of Gers,
Schmidhuber and Cummins (2000); the cell and its initialisation are Flax's.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq.models.explicit import explicit_solution
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.types import Solution, require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """What an LSTM language model is made of.

    Args:
      vocab_size: tokens are 0..vocab_size - 1.
      hidden: size of the state, >= 1.
      embed_width: of the embedding of a token, >= 1.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    vocab_size: int
    hidden: int
    embed_width: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require_integer("jdeq.models.LSTMConfig", name, value, 1)


class LSTM(nn.Module):
    """Embedding, one LSTM layer, a linear head. `jdeq.models.generate` keeps its state in the
    collection "cache".

    Args:
      config: the architecture.
    """

    config: LSTMConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch length vocab"], Solution]:
        """Logits for every position, in the form that the implicit models return.

        Args:
          tokens: ids in 0..vocab_size - 1; the logits after another id are NaN.
          train, probe: change nothing: there is no dropout, and no solve to report on.
        Returns:
          logits float32[batch, length, vocab_size]; a Solution with the states
          [batch, length, hidden]. A recurrence is evaluated, not solved: one evaluation, residual
          0, CONVERGED for each sequence.
        Raises:
          ValueError: for tokens of another rank or dtype.
        Cost: ``length`` steps, one after another.
        """
        del train, probe
        config = self.config
        tokens, known = known_tokens("jdeq.models.LSTM", tokens, config.vocab_size)
        unit = nn.initializers.normal(1.0)
        x = nn.Embed(config.vocab_size, config.embed_width, embedding_init=unit, name="token")(
            tokens
        )
        generating = self.is_mutable_collection("cache") and not self.is_initializing()
        recurrence = nn.RNN(
            nn.OptimizedLSTMCell(config.hidden), return_carry=True, name="recurrence"
        )
        shape = (tokens.shape[0], config.hidden)  # a symbol where it is exported
        if generating:
            cache = [self.variable("cache", name, jnp.zeros, shape, x.dtype) for name in ("c", "h")]
            carry, h = recurrence(x, initial_carry=tuple(part.value for part in cache))
            for part, new in zip(cache, carry, strict=True):
                part.value = new
        else:
            start = jnp.zeros(shape, x.dtype)
            _, h = recurrence(x, initial_carry=(start, start))
        logits = nn.Dense(config.vocab_size, name="head")(h)
        return mark_unknown(logits, known), explicit_solution(h)
