"""The 1797 handwritten digits (8x8, grey) inside scikit-learn: real images, no download."""

from typing import Any, NamedTuple

import numpy as np

from jdeq.data.batches import Dataset


class Digits(NamedTuple):
    """Train and test split, both standardised as ``(pixel - mean) / std``.

    Attributes:
      train, test: the `Dataset` of each.
      mean, std: of the training pixels.
    """

    train: Dataset
    test: Dataset
    mean: float
    std: float

    @property
    def background(self) -> float:
        """The standardised value of an empty pixel."""
        return -self.mean / self.std


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Digits:
    """The digits, split by class in fixed proportions: ``(images - mean) / std``, labels 0..9.

    The split depends on ``test_fraction`` and ``seed`` only; mean and standard deviation are two
    numbers, taken over the pixels of the training part.

    Args:
      test_fraction: share of the examples held out, in (0, 1).
      seed: which split.
    Returns:
      images float32 [examples, 8, 8, 1], labels int32 [examples].
    Raises:
      ValueError: if ``test_fraction`` lies outside (0, 1).
    Source: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; the test
      part of it, as bundled with scikit-learn.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(
            f"jdeq.data.load_digits: test_fraction must lie in (0, 1); got {test_fraction}"
        )
    from sklearn import datasets, model_selection

    bunch: Any = datasets.load_digits()
    images = bunch.images.astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    parts: Any = model_selection.train_test_split(
        images, labels, test_size=test_fraction, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = parts
    mean, std = float(train_images.mean()), float(train_images.std())
    return Digits(
        train=Dataset((train_images - mean) / std, train_labels),
        test=Dataset((test_images - mean) / std, test_labels),
        mean=mean,
        std=std,
    )
