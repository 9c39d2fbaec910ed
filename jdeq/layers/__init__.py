"""Linen layers for equilibrium cells."""

from jdeq.layers.adaptive import AdaptiveEmbedding
from jdeq.layers.convolution import loop_conv
from jdeq.layers.dropout import VariationalDropout
from jdeq.layers.monotone import ForwardBackward, PeacemanRachford
from jdeq.layers.past import Past, causal_attention, visible
from jdeq.layers.relative_attention import RelativeAttention, relative_shift, sinusoids
from jdeq.layers.weight_norm import WeightNormConv, WeightNormDense, weight_norm

__all__ = [
    "AdaptiveEmbedding",
    "ForwardBackward",
    "Past",
    "PeacemanRachford",
    "RelativeAttention",
    "VariationalDropout",
    "WeightNormConv",
    "WeightNormDense",
    "causal_attention",
    "loop_conv",
    "relative_shift",
    "sinusoids",
    "visible",
    "weight_norm",
]
