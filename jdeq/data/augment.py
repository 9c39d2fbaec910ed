"""Augmentation recipes of the papers: ``recipe(example, rng) -> example`` on uint8 pixels.

A recipe is a frozen dataclass; all chance comes from the generator it is called with. Where the
label is a picture of classes, it goes through the same crop, flip and scale as the image. None of
the published scripts changes colours, so no recipe does.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jdeq.data.batches import IGNORED


class Example(NamedTuple):
    """One image, before normalisation, and its label: a class, or the class of each pixel."""

    image: UInt8[np.ndarray, "height width channels"]
    label: Int32[np.ndarray, "*pixels"]  # shape () or (height, width)


Recipe = Callable[[Example, np.random.Generator], Example]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadCropFlip:
    """CIFAR: ``pad`` black pixels on every side, a crop of the old size, mirrored half the time.

    Args:
      pad: pixels, >= 0.
    Raises:
      ValueError: when built, if ``pad`` is negative.
    Cost: two copies of the image.
    Source: the training script of Bai, Koltun and Kolter (2020), Multiscale Deep Equilibrium
      Models (RandomCrop(32, padding=4), RandomHorizontalFlip).
    """

    pad: int = 4

    def __post_init__(self):
        if self.pad < 0:
            raise ValueError(f"jdeq.data.PadCropFlip: pad must be >= 0; got {self.pad}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width, _ = example.image.shape
        y, x = rng.integers(0, 2 * self.pad + 1, size=2)
        sides = (self.pad, self.pad)
        padded = _pad(example, sides, sides)
        return _random_flip(_crop(padded, y, x, height, width), rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizedCropFlip:
    """ImageNet: a box of random area and shape, resized to a square, mirrored half the time.

    The area is uniform in ``scale`` times the image's, the logarithm of width / height uniform in
    ``ratio``. A box that does not fit is drawn again; after ten of them the largest centred box of
    the nearest allowed shape is taken.

    Args:
      size: side of the result, >= 1.
      scale: shares of the area, 0 < low <= high <= 1.
      ratio: of width to height, 0 < low <= high.
    Raises:
      ValueError: when built, if a range is not as above.
    Cost: one resize (antialiased bilinear, Pillow's, as in the published code).
    Source: Szegedy et al. (2015), Going Deeper with Convolutions, section 6; the ranges are those
      of torchvision's RandomResizedCrop, which the multiscale DEQ's script uses.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        _check_sizes("ResizedCropFlip", size=self.size)
        _check_range("ResizedCropFlip", "scale", self.scale, most=1.0)
        _check_range("ResizedCropFlip", "ratio", self.ratio)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width, _ = example.image.shape
        box = self._box(height, width, rng)
        return _random_flip(_resize(example, box, self.size, self.size), rng)

    def _box(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        low, high = self.ratio
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                return y, x, h, w
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeCentreCrop:
    """ImageNet evaluation: shorter side to ``resize``, then the central square; nothing is random.

    Args:
      resize: the shorter side in pixels, >= size.
      size: side of the result, >= 1.
    Raises:
      ValueError: when built, if not 1 <= size <= resize.
    Cost: one resize (antialiased bilinear).
    """

    resize: int = 256
    size: int = 224

    def __post_init__(self):
        _check_sizes("ResizeCentreCrop", size=self.size)
        if self.resize < self.size:
            raise ValueError(
                "jdeq.data.ResizeCentreCrop: resize must be >= size, "
                f"{self.size}; got {self.resize}"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        height, width = example.image.shape[:2]
        short = min(height, width)
        new_height, new_width = self.resize * height // short, self.resize * width // short
        resized = _resize(example, (0, 0, height, width), new_height, new_width)
        y, x = round((new_height - self.size) / 2), round((new_width - self.size) / 2)
        return _crop(resized, y, x, self.size, self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleCropFlip:
    """Cityscapes: scaled by a random factor, cropped at random, mirrored half the time.

    Where the scaled image is smaller than the crop, the rest is black, labelled `IGNORED`.

    Args:
      height: of the result, >= 1.
      width: of the result, >= 1.
      scale: range of the factor, uniform, 0 < low <= high.
    Raises:
      ValueError: when built, if a size or the range is not as above.
    Cost: one resize of the part that is kept: bilinear for the image, nearest for the labels.
    Source: the training script of Bai, Koltun and Kolter (2020). It draws the factor from 0.5,
      0.6, ..., 2.1 (here: uniform), interpolates without antialiasing, and resizes the whole
      image before it crops.
    """

    height: int = 512
    width: int = 1024
    scale: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self):
        _check_sizes("ScaleCropFlip", height=self.height, width=self.width)
        _check_range("ScaleCropFlip", "scale", self.scale)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        height, width = example.image.shape[:2]
        factor = rng.uniform(*self.scale)
        scaled = max(1, round(height * factor)), max(1, round(width * factor))
        h, w = min(scaled[0], self.height), min(scaled[1], self.width)
        y = int(rng.integers(0, scaled[0] - h + 1)) * height / scaled[0]
        x = int(rng.integers(0, scaled[1] - w + 1)) * width / scaled[1]
        box = y, x, h * height / scaled[0], w * width / scaled[1]
        kept = _resize(example, box, h, w)
        padded = _pad(kept, (0, self.height - h), (0, self.width - w))
        return _random_flip(padded, rng)


def _crop(example: Example, y: int, x: int, height: int, width: int) -> Example:
    image, label = example
    window = np.s_[y : y + height, x : x + width]
    return Example(image[window], label[window] if label.ndim else label)


def _pad(example: Example, rows: tuple[int, int], columns: tuple[int, int]) -> Example:
    image, label = example
    if label.ndim:
        label = np.pad(label, (rows, columns), constant_values=IGNORED)
    return Example(np.pad(image, (rows, columns, (0, 0))), label)


def _random_flip(example: Example, rng: np.random.Generator) -> Example:
    if rng.random() < 0.5:
        return example
    image, label = example
    return Example(image[:, ::-1], label[:, ::-1] if label.ndim else label)


def _resize(
    example: Example, box: tuple[float, float, float, float], height: int, width: int
) -> Example:
    """The box (y, x, height, width) at a new size, by Pillow: in C, and without the GIL."""
    from PIL import Image

    y, x, h, w = box
    # Rounding may put the far corner a hair outside, which Pillow refuses.
    corners = x, y, min(x + w, example.image.shape[1]), min(y + h, example.image.shape[0])

    def resized(array: np.ndarray, filter: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize((width, height), filter, corners))

    image, label = example
    grey = image.shape[-1] == 1
    new = resized(image[..., 0] if grey else image, Image.Resampling.BILINEAR)
    return Example(
        new[..., None] if grey else new,
        resized(label, Image.Resampling.NEAREST) if label.ndim else label,
    )


def _check_sizes(recipe: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"jdeq.data.{recipe}: {name} must be >= 1; got {value}")


def _check_range(
    recipe: str, name: str, values: tuple[float, float], most: float = math.inf
) -> None:
    low, high = values
    if not 0 < low <= high <= most:
        limit = "" if most == math.inf else f" <= {most:g}"
        raise ValueError(
            f"jdeq.data.{recipe}: {name} must be (low, high) with 0 < low <= high{limit}; "
            f"got {values}"
        )
