"""Configurations of the multiscale DEQ classifier.

Parameters of the published ones, counted by ``jax.eval_shape`` (direction and gain of the weight
normalisation both counted, running statistics not), beside the rounded numbers the papers print:

| configuration | counted | printed in the papers |
|---|---|---|
| CIFAR large 32-64-128-256 | 11,097,438 | 10M |
| CIFAR tiny 24-24 | 158,890 | 170K |
| ImageNet small 32-64-128-256 | 16,808,936 | 17M (2106.14342), 18M (2006.08656) |

The widths and layers are those of the published recipe; why the printed numbers of the CIFAR models
differ from its count (by 11% and 6.5%) is not stated in the papers.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MDEQConfig:
    """What the MDEQ classifier is made of.

    Args:
      channels: of the state's scales, finest first; each a multiple of ``groups``.
      num_classes: of the logits, >= 1.
      head_channels: inner width of the head's bottleneck at each scale (it leaves 4 times that).
      head_features: width that is pooled and classified.
      expansion: the branch block widens its channels by this factor, >= 1.
      groups: of the GroupNorms; the one after the fusion has half of them.
      post_affine: whether the GroupNorm after the fusion, which bounds the state, has a learned
        scale and offset (the published code: not on CIFAR, yes on ImageNet).
      downsamples: how many of the stem's convolutions have stride 2, >= 0.
      dropout: rate of the variational channel dropout in the branch blocks, in [0, 1).
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    channels: tuple[int, ...]
    num_classes: int
    head_channels: tuple[int, ...]
    head_features: int
    expansion: int = 5
    groups: int = 8
    post_affine: bool = False
    downsamples: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        def require(holds: bool, name: str, rule: str):
            if not holds:
                raise ValueError(
                    f"jdeq.models.MDEQConfig: {name} must {rule}; got {getattr(self, name)}"
                )

        scales = len(self.channels)
        require(scales > 0, "channels", "name at least one scale")
        for name in ("num_classes", "head_features", "expansion", "groups"):
            require(getattr(self, name) >= 1, name, "be >= 1")
        require(
            all(width > 0 and width % self.groups == 0 for width in self.channels),
            "channels",
            f"be multiples of groups ({self.groups})",
        )
        require(
            len(self.head_channels) == scales,
            "head_channels",
            f"have one entry per scale ({scales})",
        )
        require(min(self.head_channels) >= 1, "head_channels", "be >= 1")
        require(self.downsamples >= 0, "downsamples", "be >= 0")
        require(0.0 <= self.dropout < 1.0, "dropout", "lie in [0, 1)")


MDEQ_CIFAR_LARGE = MDEQConfig(
    channels=(32, 64, 128, 256),
    num_classes=10,
    head_channels=(14, 28, 56, 112),
    head_features=1680,
    dropout=0.3,
)
"""CIFAR-10 with augmentation; state of one 32x32 image: 61,440 numbers."""

MDEQ_CIFAR_TINY = MDEQConfig(
    channels=(24, 24), num_classes=10, head_channels=(8, 16), head_features=200, dropout=0.25
)
"""CIFAR-10 without augmentation; state of one 32x32 image: 30,720 numbers."""

MDEQ_DIGITS = MDEQConfig(
    channels=(16, 32),
    num_classes=10,
    head_channels=(8, 16),
    head_features=128,
    expansion=2,
    groups=4,
)
"""8x8 grey digits on a CPU; state of one image: 1,536 numbers. Not a published configuration."""
