"""Linen layers for equilibrium cells."""

from jdeq.layers.convolution import loop_conv
from jdeq.layers.dropout import VariationalDropout
from jdeq.layers.monotone import ForwardBackward, PeacemanRachford
from jdeq.layers.weight_norm import WeightNormConv, WeightNormDense, weight_norm

__all__ = [
    "ForwardBackward",
    "PeacemanRachford",
    "VariationalDropout",
    "WeightNormConv",
    "WeightNormDense",
    "loop_conv",
    "weight_norm",
]
