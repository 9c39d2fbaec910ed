"""Residual networks: the explicit image classifiers that the DEQ papers compare with.

    x <- relu(x + F(x)),  F = BN conv3x3 relu BN conv3x3,
    or, with a bottleneck,  BN conv1x1 relu BN conv3x3 relu BN conv1x1, four times wider

Source: He, Zhang, Ren and Sun (2016), Deep Residual Learning for Image Recognition, arXiv
1512.03385, table 1 and equation 2 (a projection where the shape changes). Deviations, those in
common use: a bottleneck strides in its 3x3 convolution, not in the first; on images of 32 pixels
the stem is one 3x3 convolution without pooling, and the four stages and their widths stay.

| configuration | parameters | printed in 2006.08656 and 2106.14342 |
|---|---|---|
| CIFAR ResNet-18, ResNet-101 | 11,173,962; 42,512,970 | 10M; 40M |
| ImageNet ResNet-18, -50, -101 | 11,689,512; 25,557,032; 44,549,160 | 13M; 26M; 52M |
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

_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_init)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """What a residual network is made of.

    Args:
      blocks: of each stage, >= 1; a stage after the first halves the sides and doubles the width.
      num_classes: of the logits, >= 1.
      bottleneck: blocks of three convolutions that end four times wider, not of two.
      small_images: the stem is one 3x3 convolution; else 7x7 of stride 2 and a pooling of stride 2.
      width: of the first stage, >= 1.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    blocks: tuple[int, ...]
    num_classes: int
    bottleneck: bool = False
    small_images: bool = False
    width: int = 64

    def __post_init__(self):
        name = "jdeq.models.ResNetConfig"
        if not self.blocks:
            raise ValueError(f"{name}: blocks must name at least one stage; got {self.blocks}")
        for count in self.blocks:
            require_integer(name, "blocks", count, 1)
        require_integer(name, "num_classes", self.num_classes, 1)
        require_integer(name, "width", self.width, 1)


RESNET18_CIFAR = ResNetConfig(blocks=(2, 2, 2, 2), num_classes=10, small_images=True)
"""CIFAR-10; 93.0% in 2106.14342."""
RESNET101_CIFAR = ResNetConfig(
    blocks=(3, 4, 23, 3), num_classes=10, bottleneck=True, small_images=True
)
"""CIFAR-10; 93.8% in 2106.14342."""
RESNET18_IMAGENET = ResNetConfig(blocks=(2, 2, 2, 2), num_classes=1000)
"""ImageNet; 70.2% in 2106.14342."""
RESNET50_IMAGENET = ResNetConfig(blocks=(3, 4, 6, 3), num_classes=1000, bottleneck=True)
"""ImageNet; 75.1% in 2106.14342."""
RESNET101_IMAGENET = ResNetConfig(blocks=(3, 4, 23, 3), num_classes=1000, bottleneck=True)
"""ImageNet; 77.1% in 2106.14342."""


class _Block(nn.Module):
    """One residual block; the shortcut is projected where the shape changes."""

    width: int
    strides: int
    bottleneck: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(_Conv, dtype=self.dtype)
        norm = functools.partial(batch_norm, train, self.dtype)
        strides, out = self.strides, self.width * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
            y = nn.relu(norm()(conv(self.width, (3, 3), strides=strides, padding=1)(y)))
            y = norm()(conv(out, (1, 1))(y))
        else:
            y = nn.relu(norm()(conv(self.width, (3, 3), strides=strides, padding=1)(x)))
            y = norm()(conv(out, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = conv(out, (1, 1), strides=strides, name="shortcut")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean pool, linear.

    Training needs ``mutable=['batch_stats']``.

    Args:
      config: the architecture.
      dtype: of the computation; None: that of the parameters and images. Parameters and logits are
        float32.
    """

    config: ResNetConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits, in the form that the implicit models return.

        Args:
          images: float[batch, height, width, colours] of any sides.
          train: BatchNorm by the batch's statistics (and update the running ones).
          probe: is left alone: there is no solve to report on.
        Returns:
          logits float32[batch, num_classes]; a Solution with the pooled features
          float32[batch, channels], one evaluation for each image.
        Raises:
          ValueError: for images of another rank.
        """
        del probe
        config = self.config
        check_rank("jdeq.models.ResNet", images.shape)
        if config.small_images:
            x = _Conv(config.width, (3, 3), padding=1, dtype=self.dtype, name="stem")(images)
        else:
            x = _Conv(config.width, (7, 7), strides=2, padding=3, dtype=self.dtype, name="stem")(
                images
            )
        x = nn.relu(batch_norm(train, self.dtype, name="stem_norm")(x))
        if not config.small_images:
            x = stem_pool(x)
        for stage, blocks in enumerate(config.blocks):
            for i in range(blocks):
                x = _Block(
                    config.width << stage,
                    2 if stage and not i else 1,
                    config.bottleneck,
                    self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train)
        x = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
        return nn.Dense(config.num_classes, name="classify")(x), explicit_solution(x)
