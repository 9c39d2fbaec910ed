"""Linen layers for equilibrium cells."""

from jdeq.layers.adaptive import AdaptiveEmbedding
from jdeq.layers.convolution import loop_conv
from jdeq.layers.dropout import VariationalDropout
from jdeq.layers.monotone import ForwardBackward, PeacemanRachford
from jdeq.layers.relative_attention import RelativeAttention, relative_shift, sinusoids
from jdeq.layers.weight_norm import WeightNormConv, WeightNormDense, weight_norm

__all__ = [
    "AdaptiveEmbedding",
    "ForwardBackward",
    "PeacemanRachford",
    "RelativeAttention",
    "VariationalDropout",
    "WeightNormConv",
    "WeightNormDense",
    "loop_conv",
    "relative_shift",
    "sinusoids",
    "weight_norm",
]
