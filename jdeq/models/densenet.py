"""Densely connected networks, the most accurate explicit baseline of the DEQ papers on CIFAR-10.

    x <- [x, conv3x3 relu BN conv1x1 relu BN x]  in each layer;  between blocks
    x <- mean_pool(conv1x1 relu BN x),  half as wide

Source: Huang, Liu, van der Maaten and Weinberger (2017), Densely Connected Convolutional Networks,
arXiv 1608.06993, section 3 (DenseNet-BC) and table 1. Deviation: on images of 32 pixels the stem is
one 3x3 convolution without pooling, and the four blocks of the ImageNet model stay.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.models.explicit import explicit_solution
from jdeq.models.image_parts import batch_norm, check_rank, stem_pool
from jdeq.types import Solution, require_integer

_Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseNetConfig:
    """What a densely connected network is made of.

    Args:
      layers: of each block, >= 1; a block after the first has half the sides.
      num_classes: of the logits, >= 1.
      growth: channels that a layer adds, >= 1; it goes through four times as many, and the stem
        has twice as many.
      small_images: the stem is one 3x3 convolution; else 7x7 of stride 2, BatchNorm, relu and a
        pooling of stride 2.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    layers: tuple[int, ...]
    num_classes: int
    growth: int = 32
    small_images: bool = False

    def __post_init__(self):
        name = "jdeq.models.DenseNetConfig"
        if not self.layers:
            raise ValueError(f"{name}: layers must name at least one block; got {self.layers}")
        for count in self.layers:
            require_integer(name, "layers", count, 1)
        require_integer(name, "num_classes", self.num_classes, 1)
        require_integer(name, "growth", self.growth, 1)


DENSENET121_CIFAR = DenseNetConfig(layers=(6, 12, 24, 16), num_classes=10, small_images=True)
"""CIFAR-10: 6,956,298 parameters (2106.14342 prints 8M, which is the one for ImageNet); 95.0%
there."""
DENSENET121_IMAGENET = DenseNetConfig(layers=(6, 12, 24, 16), num_classes=1000)
"""ImageNet: 7,978,856 parameters."""


class _Layer(nn.Module):
    """``[x, conv3x3 relu BN conv1x1 relu BN x]``."""

    growth: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(batch_norm, train, self.dtype)
        y = _Conv(4 * self.growth, (1, 1), dtype=self.dtype)(nn.relu(norm()(x)))
        y = _Conv(self.growth, (3, 3), padding=1, dtype=self.dtype)(nn.relu(norm()(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """Stem, dense blocks with transitions between them, BatchNorm, relu, mean pool, linear.

    Training needs ``mutable=['batch_stats']``.

    Args:
      config: the architecture.
      dtype: of the computation; None: that of the parameters and images. Parameters and logits are
        float32.
    """

    config: DenseNetConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits, in the form that the implicit models return.

        Args:
          images: float[batch, height, width, colours]; a side must be left after the halvings, one
            for each block after the first and two in the stem of large images.
          train: BatchNorm by the batch's statistics (and update the running ones).
          probe: is left alone: there is no solve to report on.
        Returns:
          logits float32[batch, num_classes]; a Solution with the pooled features
          float32[batch, channels], one evaluation for each image.
        Raises:
          ValueError: for images of another rank, or that are too small.
        """
        del probe
        config = self.config
        _check_size(config, images.shape)
        norm = functools.partial(batch_norm, train, self.dtype)
        conv = functools.partial(_Conv, dtype=self.dtype)
        if config.small_images:
            x = conv(2 * config.growth, (3, 3), padding=1, name="stem")(images)
        else:
            x = conv(2 * config.growth, (7, 7), strides=2, padding=3, name="stem")(images)
            x = nn.relu(norm(name="stem_norm")(x))
            x = stem_pool(x)
        for block, layers in enumerate(config.layers):
            if block:
                x = nn.relu(norm(name=f"transition{block}_norm")(x))
                x = conv(x.shape[-1] // 2, (1, 1), name=f"transition{block}")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for i in range(layers):
                x = _Layer(config.growth, self.dtype, name=f"block{block}_layer{i}")(x, train)
        x = nn.relu(norm(name="last_norm")(x))
        x = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
        return nn.Dense(config.num_classes, name="classify")(x), explicit_solution(x)


def _check_size(config: DenseNetConfig, shape: tuple[int, ...]) -> None:
    check_rank("jdeq.models.DenseNet", shape)
    least = 2 ** (len(config.layers) - 1)
    if not config.small_images:
        least = 4 * least - 3  # the stem rounds up
    for axis, side in zip(("height", "width"), shape[1:3], strict=True):
        if side < least:
            raise ValueError(
                f"jdeq.models.DenseNet: the {axis} of images must be >= {least}; got {side}"
            )
