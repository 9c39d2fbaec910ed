"""Transformer-XL, the explicit twin of the DEQ-Transformer: the same block, once for each layer.

Source: Dai et al. (2019), Transformer-XL, arXiv 1901.02860. Deviations, which are the parts of the
DEQ-Transformer: weight norm, LayerNorms without parameters, variational dropout, position biases of
each layer's own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int

from jdeq.layers import Past
from jdeq.models.deq_transformer import TransformerBlock, embed, predict
from jdeq.models.deq_transformer_config import TransformerXLConfig
from jdeq.models.explicit import explicit_solution
from jdeq.models.kept import Kept, attention_cache
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.types import Solution


class TransformerXL(nn.Module):
    """Adaptive embedding, ``config.layers`` blocks, the adaptive softmax tied to the embedding.

    The memory of a layer is its input on the segments before; it lives in the collection "memory"
    and takes part where that is mutable; `jdeq.models.generate` has a "cache" of keys and values in
    its place (see `jdeq.models.kept`).

    Args:
      config: the architecture.
      dtype: of the computation; None: that of the parameters.
    """

    config: TransformerXLConfig
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
        """Log-probabilities of the token after each, or the losses of labels.

        Args:
          tokens, train, labels: as of `jdeq.models.DEQTransformerLM`.
          probe: is left alone: its gradient is zero.
        Returns:
          the first as of `jdeq.models.DEQTransformerLM`; a Solution of the same form for the sake
          of the training step: z is the last layer's output, nfe the number of layers, residual 0
          and status CONVERGED, [batch, length].
        Raises:
          ValueError: for tokens of another rank or dtype, or a memory of another batch.
        """
        del train, probe
        config = self.config
        tokens, known = known_tokens("jdeq.models.TransformerXL", tokens, config.vocab_size)
        embedding, z = embed(config, self.dtype, tokens)
        layers = range(config.layers)
        cache = attention_cache(self, z, config.heads, config.width, layers=config.layers)
        generating = cache.filled is not None
        inputs = {f"input{i}": z for i in layers}
        memory = Kept(self, "memory", inputs, length=0 if generating else config.memory)
        new = {}
        for i in layers:
            inputs[f"input{i}"] = z
            block = TransformerBlock(config, self.dtype, name=f"layer{i}")
            if generating:
                past = Past(cache.past[f"keys{i}"], cache.past[f"values{i}"], cache.filled)
                new[f"keys{i}"], new[f"values{i}"] = block.keys_values(z)
            else:
                past = Past(*block.keys_values(memory.past[f"input{i}"]), memory.filled)
            z = block(z, past=past)
        memory.write(inputs)
        cache.write(new)
        outputs = predict(config, embedding, z, labels)
        solution = explicit_solution(z, ndim=2, nfe=config.layers)
        return mark_unknown(outputs, known), solution
