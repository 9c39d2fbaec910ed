"""Configurations of TrellisNets, implicit and explicit."""

from __future__ import annotations

import dataclasses

from jdeq.types import require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrellisConfig:
    """What a TrellisNet is made of.

    Args:
      vocab_size: tokens are 0..vocab_size - 1.
      width: of h and of c, >= 1.
      embed_width: of the embedding of a token, >= 1.
      dilations: one step of the cell each, in this order, >= 1.
      tied: the logits are read from the last ``embed_width`` channels of h, by the embedding; else
        from all of h, by a matrix of their own. Both have a bias.
      input_dropout, dropout, output_dropout: of the embedded tokens, of h before its convolution,
        and of the channels that the logits are read from; in [0, 1).
      drop_connect: of the entries of W_h, in [0, 1).
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    vocab_size: int
    width: int
    embed_width: int
    dilations: tuple[int, ...] = (1,)
    tied: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.0
    output_dropout: float = 0.0
    drop_connect: float = 0.0

    def __post_init__(self):
        name = "jdeq.models.TrellisConfig"
        for field in ("vocab_size", "width", "embed_width"):
            require_integer(name, field, getattr(self, field), 1)
        if not self.dilations:
            raise ValueError(f"{name}: dilations must have at least one entry; got none")
        for dilation in self.dilations:
            require_integer(name, "dilations", dilation, 1)
        for field in ("input_dropout", "dropout", "output_dropout", "drop_connect"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"{name}: {field} must be in [0, 1); got {getattr(self, field)}")
        if self.tied and self.embed_width > self.width:
            raise ValueError(
                f"{name}: embed_width must be at most width ({self.width}), whose last channels "
                f"give the logits if tied; got {self.embed_width}"
            )


TRELLIS_PTB = TrellisConfig(
    vocab_size=10_000,
    width=1400,
    embed_width=400,
    input_dropout=0.45,
    dropout=0.28,
    output_dropout=0.45,
    drop_connect=0.5,
)
"""Penn Treebank, words: 24.2M parameters (published: 24M). 57.1 perplexity as a DEQ, 57.0 with 60
layers."""

TRELLIS_WIKITEXT103 = TrellisConfig(
    vocab_size=267_735,
    width=2012,
    embed_width=512,
    input_dropout=0.1,
    dropout=0.1,
    output_dropout=0.1,
)
"""WikiText-103, words: 178.0M parameters (published: 180M), in the widths of the TrellisNet code;
29.0 perplexity as a DEQ. The published loss splits the softmax by frequency, which this one, of
267,735 logits a token, does not."""
