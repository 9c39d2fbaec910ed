"""Noisy pairs of a curve: the regression task of one number from one number."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jdeq.data.batches import Dataset

NOISE = 0.05
"""Standard deviation of what is added to y."""


class Synthetic(NamedTuple):
    """Train and test split; the labels are ``(y - mean) / std``, the inputs x itself.

    Attributes:
      train, test: the `Dataset` of each.
      mean, std: of the training y.
    """

    train: Dataset
    test: Dataset
    mean: float
    std: float

    def standardised_curve(self, x: Float[np.ndarray, " *n"]) -> Float[np.ndarray, " *n"]:
        """The `curve` as labels would have it, without noise."""
        return (curve(x) - self.mean) / self.std


def curve(x: Float[np.ndarray, " *n"]) -> Float[np.ndarray, " *n"]:
    """``h(x) = 3/2 x^3 + x^2 - 5 x + 2 sin(x) - 3``."""
    return 1.5 * x**3 + x**2 - 5 * x + 2 * np.sin(x) - 3


def load_synthetic(*, train: int = 4096, test: int = 1000, half_width: float = 1.5) -> Synthetic:
    """Pairs ``(x, y = h(x) + noise)``, h of `curve`, y standardised; the same at every call.

    Args:
      train: how many, >= 2.
      test: how many, >= 1.
      half_width: x is uniform within so much of 0; > 0.
    Returns:
      inputs float32 [examples, 1], labels float32 [examples].
    Raises:
      ValueError: if a number is too small.
    Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
      section 5.1: 4096 and 1000 of 5096 pairs. The paper does not say what x is drawn from, and
      nothing of a standardisation; chosen here: x uniform in [-1.5, 1.5], which holds both turns of
      the curve, and y standardised by the mean and the standard deviation of the training part.
      "N(0, 0.05)" is read as a standard deviation of 0.05, 3.3% of that of y; as a variance the
      noise alone would be 15% of it.
    """
    for name, count, least in (("train", train, 2), ("test", test, 1)):
        if count < least:
            raise ValueError(f"jdeq.data.load_synthetic: {name} must be >= {least}; got {count}")
    if not half_width > 0:
        raise ValueError(f"jdeq.data.load_synthetic: half_width must be > 0; got {half_width}")
    parts = []
    for index, count in enumerate((train, test)):
        rng = np.random.default_rng(index)
        x = rng.uniform(-half_width, half_width, size=count)
        parts.append((x, curve(x) + rng.normal(0.0, NOISE, size=count)))
    mean, std = float(parts[0][1].mean()), float(parts[0][1].std())
    return Synthetic(
        *(
            Dataset(x[:, None].astype(np.float32), ((y - mean) / std).astype(np.float32))
            for x, y in parts
        ),
        mean=mean,
        std=std,
    )
