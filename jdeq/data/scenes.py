"""Scenes of handwritten digits with the class of every pixel: segmentation without a download."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jdeq.data.augment import Example
from jdeq.data.batches import IGNORED, Dataset
from jdeq.data.images import ImageSet

SIDE = 64  # pixels
BACKGROUND = 10  # the class after the digits

SCENES = ImageSet(name="scenes", mean=(0.29, 0.29, 0.29), std=(0.22, 0.22, 0.22), classes=11)
"""About the pixels' mean and standard deviation over 256 scenes, all colours alike."""


class Scenes(NamedTuple):
    """The `Dataset` of the ``train`` and the ``test`` split, normalised."""

    train: Dataset
    test: Dataset


def load_scenes(*, train: int = 256, test: int = 64) -> Scenes:
    """Scenes of four of the 1797 digits each, in colours; the same at every call.

    Of a part, the first ones are the same whatever their number.

    Args:
      train: how many, >= 1, of the digits of the training part.
      test: how many, >= 1, of the other digits.
    Returns:
      images float32 [scenes, 64, 64, 3]; labels int32 [scenes, 64, 64]: 0..9 on a digit, 10 on
      paper, `jdeq.data.IGNORED` on the rim, neither ink nor paper.
    Raises:
      ValueError: if a number is below 1.
    Source: the digits are those of `jdeq.data.load_digits`.
    """
    for name, count in (("train", train), ("test", test)):
        if count < 1:
            raise ValueError(f"jdeq.data.load_scenes: {name} must be >= 1; got {count}")
    return Scenes(
        SCENES.normalise(draw_scenes("train", train)), SCENES.normalise(draw_scenes("test", test))
    )


def draw_scenes(part: Literal["train", "test"], count: int) -> Iterator[Example]:
    """The first ``count`` scenes of a part, each part with digits and chance of its own."""
    index = ("train", "test").index(part)
    digits, labels = digit_parts()[index]
    rng = np.random.default_rng(index)
    for _ in range(count):
        yield draw_scene(digits, labels, rng)


def digit_parts() -> list[tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]]:
    """The digits as pixels 0..255 and their labels: the training part (1437), the other (360)."""
    from sklearn import datasets, model_selection

    bunch: Any = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    parts: Any = model_selection.train_test_split(
        images, bunch.target, test_size=0.2, stratify=bunch.target, random_state=0
    )
    return [(parts[0], parts[2]), (parts[1], parts[3])]


def draw_scene(
    digits: UInt8[np.ndarray, "n 8 8"], labels: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Example:
    """One scene: a digit of 16 to 32 pixels at a place of its own in each quarter."""
    grey = np.zeros((SIDE, SIDE), np.uint8)
    classes = np.full((SIDE, SIDE), BACKGROUND, np.int32)
    half = SIDE // 2
    for corner in ((0, 0), (0, half), (half, 0), (half, half)):
        digit = rng.integers(len(digits))
        size = int(rng.integers(16, half + 1))
        y, x = (start + int(rng.integers(0, half + 1 - size)) for start in corner)
        ink = resize_digit(digits[digit], size)
        grey[y : y + size, x : x + size] = ink
        classes[y : y + size, x : x + size] = np.select(
            [ink >= 128, ink >= 64], [labels[digit], IGNORED], BACKGROUND
        )
    return Example(paint(grey, rng), classes)


def resize_digit(digit: UInt8[np.ndarray, "8 8"], size: int) -> UInt8[np.ndarray, "size size"]:
    """The digit at another size, bilinear."""
    from PIL import Image

    return np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BILINEAR))


def paint(
    grey: UInt8[np.ndarray, "height width"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """A grey image in a light colour on a dark one."""
    paper, ink = rng.integers(0, 96, 3), rng.integers(160, 256, 3)
    share = grey[..., None] / 255
    return np.round(paper + share * (ink - paper)).astype(np.uint8)
