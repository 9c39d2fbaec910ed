"""Configurations of the multiscale DEQ: image classifiers and segmentation models.

Parameters of the published ones, counted by ``jax.eval_shape`` (direction and gain of the weight
normalisation both counted, running statistics not), beside the rounded numbers the papers print:

| configuration | counted | printed in the papers |
|---|---|---|
| CIFAR large 32-64-128-256 | 11,097,438 | 10M |
| CIFAR tiny 24-24 | 158,890 | 170K |
| ImageNet small 32-64-128-256 | 16,808,936 | 18M (2006.08656) |
| ImageNet small, regularized | 18,613,496 | 17M (2106.14342) |
| ImageNet large 80-160-320-640 | 67,063,624 | 63M |
| ImageNet large, regularized | 67,061,224 | 62M |
| ImageNet XL 88-176-352-704 | 78,608,360 | |
| Cityscapes small, large, XL | 8,968,467; 55,955,859; 79,551,755 | |

The widths and layers are those of the released configuration files, by which the code gives these
counts; they are not the files of the papers. With the head of the small one, 24-48-96-192, the
large one has 63,060,488; with an expansion of 4 and the head 28-56-112-224 of the first release,
the small one has 17,046,296. What the other printed numbers are counts of is not stated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jdeq.types import require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class MDEQBody:
    """The stem and the cell, which all models have; this alone is no model.

    Args:
      channels: of the state's scales, finest first; each >= 1 and a multiple of ``groups``.
      num_classes: of the logits, >= 1.
      expansion: the branch block widens its channels by this factor, >= 1.
      groups: of the GroupNorms, >= 1; with several scales the one after the fusion has
        ``max(1, groups // 2)``, which must divide the channels, too.
      post_affine: whether the GroupNorm after the fusion, which bounds the state, has a learned
        scale and offset (the published code: not on CIFAR, in the regularized models and in the XL
        of ImageNet, yes in the others).
      downsamples: how many of the stem's convolutions have stride 2, >= 0.
      dropout: rate of the variational channel dropout in the branch blocks, in [0, 1).
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    channels: tuple[int, ...]
    num_classes: int
    expansion: int = 5
    groups: int = 8
    post_affine: bool = False
    downsamples: int = 0
    dropout: float = 0.0

    def __post_init__(self):
        self._require(len(self.channels) > 0, "channels", "name at least one scale")
        self._require_integers(1, "channels", "num_classes", "expansion", "groups")
        self._require_integers(0, "downsamples")
        self._require(
            not any(width % self.groups for width in self.channels),
            "channels",
            f"be multiples of groups ({self.groups})",
        )
        fused = max(1, self.groups // 2)
        self._require(
            len(self.channels) == 1 or not any(width % fused for width in self.channels),
            "channels",
            f"be multiples of groups // 2 ({fused})",
        )
        self._require(0.0 <= self.dropout < 1.0, "dropout", "lie in [0, 1)")

    def _require_integers(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            for entry in value if isinstance(value, tuple) else (value,):
                require_integer(f"jdeq.models.{type(self).__name__}", name, entry, least)

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(
                f"jdeq.models.{type(self).__name__}: {name} must {rule}; got {getattr(self, name)}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MDEQConfig(MDEQBody):
    """What the MDEQ classifier is made of: the fields of `MDEQBody`, and its head.

    Args:
      head_channels: inner width of the head's bottleneck at each scale (it leaves 4 times that).
      head_features: width that is pooled and classified.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    head_channels: tuple[int, ...]
    head_features: int

    def __post_init__(self):
        super().__post_init__()
        scales = len(self.channels)
        rule = f"have one entry per scale ({scales})"
        self._require(len(self.head_channels) == scales, "head_channels", rule)
        self._require_integers(1, "head_channels", "head_features")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MDEQSegmenterConfig(MDEQBody):
    """What the MDEQ segmentation model is made of: the fields of `MDEQBody`.

    Raises:
      ValueError: when built, for a value outside its range.
    """


MDEQ_CIFAR_LARGE = MDEQConfig(
    channels=(32, 64, 128, 256),
    num_classes=10,
    head_channels=(14, 28, 56, 112),
    head_features=1680,
    dropout=0.3,
)
"""CIFAR-10 with augmentation; state of one 32x32 image: 61,440 numbers. 93.6% in
2106.14342."""

MDEQ_CIFAR_TINY = MDEQConfig(
    channels=(24, 24), num_classes=10, head_channels=(8, 16), head_features=200, dropout=0.25
)
"""CIFAR-10 without augmentation; state of one 32x32 image: 30,720 numbers."""

MDEQ_IMAGENET_SMALL = MDEQConfig(
    channels=(32, 64, 128, 256),
    num_classes=1000,
    head_channels=(24, 48, 96, 192),
    head_features=2048,
    post_affine=True,
    downsamples=2,
)
"""ImageNet; state of one 224x224 image: 188,160 numbers. 75.4% in the papers."""

MDEQ_IMAGENET_SMALL_JR = dataclasses.replace(
    MDEQ_IMAGENET_SMALL, head_channels=(28, 56, 112, 224), post_affine=False, dropout=0.02
)
"""The same to be trained with Jacobian regularization: 74.5% with 14 evaluations."""

MDEQ_IMAGENET_LARGE = dataclasses.replace(
    MDEQ_IMAGENET_SMALL, channels=(80, 160, 320, 640), head_channels=(32, 64, 128, 256)
)
"""ImageNet; state of one 224x224 image: 470,400 numbers. 77.5% in the papers."""

MDEQ_IMAGENET_LARGE_JR = dataclasses.replace(MDEQ_IMAGENET_LARGE, post_affine=False)
"""The same to be trained with Jacobian regularization: 76.8% with 15 evaluations."""

MDEQ_IMAGENET_XL = dataclasses.replace(
    MDEQ_IMAGENET_LARGE, channels=(88, 176, 352, 704), post_affine=False
)
"""ImageNet, the largest; an expansion of 5, as in the newer of the two published codes (6 in the
older)."""

_cityscapes: dict[str, Any] = {"num_classes": 19, "post_affine": True, "downsamples": 2}
MDEQ_CITYSCAPES_SMALL = MDEQSegmenterConfig(
    channels=(32, 64, 128, 256), dropout=0.05, **_cityscapes
)
"""Cityscapes; state of one 1024x512 image: 1,966,080 numbers."""
MDEQ_CITYSCAPES_LARGE = MDEQSegmenterConfig(
    channels=(80, 160, 320, 640), dropout=0.03, **_cityscapes
)
"""Cityscapes; state of one 1024x512 image: 4,915,200 numbers."""
MDEQ_CITYSCAPES_XL = MDEQSegmenterConfig(
    channels=(88, 176, 352, 704), expansion=6, dropout=0.04, **_cityscapes
)
"""Cityscapes, the largest; trained on 1024x768."""

MDEQ_DIGITS = MDEQConfig(
    channels=(16, 32),
    num_classes=10,
    head_channels=(8, 16),
    head_features=128,
    expansion=2,
    groups=4,
)
"""8x8 grey digits on a CPU; state of one image: 1,536 numbers. Not a published configuration."""
