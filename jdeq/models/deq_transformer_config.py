"""Configurations of the DEQ-Transformer and of its explicit twin."""

from __future__ import annotations

import dataclasses

from jdeq.types import require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEQTransformerConfig:
    """What a DEQ-Transformer is made of.

    Args:
      vocab_size: tokens are 0..vocab_size - 1; with cut-offs the frequent ones first.
      width: of the state of a token and of its embedding; a multiple of ``heads``.
      heads: of the attention, >= 1.
      hidden: units of the feed-forward layer, >= 1.
      memory: positions of earlier segments to attend to, >= 0.
      cutoffs, divisor: of `jdeq.layers.AdaptiveEmbedding`.
      pre_norm: normalise before attention and feed-forward, and not at the end.
      weight_norm: normalise every matrix of the block; False: plain matrices, which start alike.
      dropout: rate, in [0, 1), on embeddings, R, the outputs of attention and feed-forward, its
        hidden units, and the output: one draw per row and feature, for all positions.
      attention_dropout: rate on the attention weights.
    Raises:
      ValueError: when built, for an integer outside its range. The other values are checked by the
        layers that they belong to.
    """

    vocab_size: int
    width: int
    heads: int
    hidden: int
    memory: int = 0
    cutoffs: tuple[int, ...] = ()
    divisor: int = 1
    pre_norm: bool = False
    weight_norm: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self):
        name = f"jdeq.models.{type(self).__name__}"
        for option in ("vocab_size", "width", "heads", "hidden", "divisor"):
            require_integer(name, option, getattr(self, option), 1)
        require_integer(name, "memory", self.memory, 0)
        if self.width % self.heads:
            raise ValueError(
                f"{name}: width must be a multiple of heads ({self.heads}); got {self.width}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(DEQTransformerConfig):
    """The same with ``layers`` explicit layers, >= 1, each with a memory of its own.

    Raises:
      ValueError: when built, as `DEQTransformerConfig`.
    """

    layers: int

    def __post_init__(self):
        super().__post_init__()
        require_integer("jdeq.models.TransformerXLConfig", "layers", self.layers, 1)


DEQ_TRANSFORMER_WIKITEXT103 = DEQTransformerConfig(
    vocab_size=267735,
    width=700,
    heads=10,
    hidden=48000,
    memory=150,
    cutoffs=(20000, 40000, 200000),
    divisor=4,
    dropout=0.05,
)
"""WikiText-103 in words, segments of 150, without regularization, as in the published script:
97.7M parameters (the paper prints 98M). 24.0 perplexity there, with 30 evaluations."""

DEQ_TRANSFORMER_WIKITEXT103_JR = dataclasses.replace(
    DEQ_TRANSFORMER_WIKITEXT103, memory=300, dropout=0.06, attention_dropout=0.01
)
"""The same to be trained with Jacobian regularization (gamma 1.9, p 0.35): 24.9 perplexity with 12
evaluations. Pre-norm, 24.5 with 14, is ``dataclasses.replace(..., pre_norm=True)``."""

TRANSFORMER_XL_WIKITEXT103 = TransformerXLConfig(
    vocab_size=267735,
    width=610,
    heads=10,
    hidden=2440,
    layers=18,
    memory=150,
    cutoffs=(20000, 40000, 200000),
    divisor=4,
    dropout=0.1,
)
"""The explicit model that the DEQ papers compare with, 24.1 perplexity. They print 18 layers and
110M parameters, but no widths: these are the proportions of the 18 layers of 257M in Dai et al.
(width 1024, 4096 hidden units) at 110.3M parameters."""
