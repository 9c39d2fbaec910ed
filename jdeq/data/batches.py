"""Deterministic batches, addressed by position: what is at a position never depends on history."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jdeq.data.shards import check_shards, shard_rows

IGNORED = -1
"""The label of a pixel or a token that no loss and no score counts."""


class Dataset(NamedTuple):
    """Labelled examples in memory; also one batch of them.

    Attributes:
      inputs: images, rows of features, or rows of tokens; the first axis counts examples.
      labels: one of each image; of a row of tokens one for every token, the token after it; of a
        regression a number of each example.
    """

    inputs: (
        Float[np.ndarray, "examples height width channels"]
        | Float[np.ndarray, "examples features"]
        | Int[np.ndarray, "examples length"]
    )
    labels: (
        Int[np.ndarray, " examples"]
        | Int[np.ndarray, "examples length"]
        | Float[np.ndarray, " examples"]
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShuffledBatches:
    """Shuffled training batches, ``data[permutation(seed, epoch)[i B : (i + 1) B]]``.

    A position is ``epoch * batches_per_epoch + i``: resuming in the middle of an epoch needs this
    one integer. Each epoch is a new permutation and leaves out the ``size % B`` examples that do
    not fill a batch.

    Args:
      data: the examples to draw from.
      batch_size: B, in 1..size.
      seed: of the shuffling and of the augmentation.
      max_shift: augmentation, `random_shift` by up to so many pixels; 0 is none.
      background: the value shifted in at the border.
      shard: which rows of every batch come out: block ``shard`` of ``num_shards`` equal ones.
      num_shards: divides ``batch_size``.
    Raises:
      ValueError: when built, if ``batch_size`` is not in 1..size, ``max_shift`` is negative, or
        there is no such shard.
    Cost: one permutation an epoch, kept for the epoch.
    """

    data: Dataset
    batch_size: int
    seed: int = 0
    max_shift: int = 0
    background: float = 0.0
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self):
        size = len(self.data.labels)
        if not 1 <= self.batch_size <= size:
            raise ValueError(
                "jdeq.data.ShuffledBatches: batch_size must be in 1.."
                f"{size}, the number of training examples; got {self.batch_size}"
            )
        check_shards("ShuffledBatches", self.batch_size, self.shard, self.num_shards)
        if self.max_shift < 0:
            raise ValueError(
                f"jdeq.data.ShuffledBatches: max_shift must be >= 0; got {self.max_shift}"
            )

    @property
    def batches_per_epoch(self) -> int:
        return len(self.data.labels) // self.batch_size

    def indices(self, position: int) -> Int[np.ndarray, " batch"]:
        """Which examples stand at ``position``."""
        epoch, index = divmod(position, self.batches_per_epoch)
        order = permutation(self.seed, epoch, len(self.data.labels))
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def __call__(self, position: int) -> Dataset:
        """The rows of this shard at ``position``, augmented by a generator seeded with (seed,
        position).
        """
        chosen = self.indices(position)
        images = self.data.inputs[chosen]
        if self.max_shift:
            rng = np.random.default_rng((self.seed, 1, position))
            images = random_shift(
                images, max_shift=self.max_shift, background=self.background, rng=rng
            )
        rows = shard_rows(self.batch_size, self.shard, self.num_shards)
        return Dataset(images[rows], self.data.labels[chosen[rows]])


@functools.lru_cache(maxsize=4)  # threads may be at work in two epochs at once
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.default_rng((seed, 0, epoch)).permutation(size)


def random_shift(
    images: Float[np.ndarray, "batch height width channels"],
    *,
    max_shift: int,
    background: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "batch height width channels"]:
    """Each image moved by its own (dy, dx), uniform in -max_shift..max_shift; size unchanged.

    Args:
      images: any dtype.
      max_shift: >= 1.
      background: the value of the pixels that come into view.
      rng: where the shifts are drawn from.
    """
    batch, height, width, _ = images.shape
    pad = [(0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)]
    padded = np.pad(images, pad, constant_values=background)
    dy, dx = rng.integers(0, 2 * max_shift + 1, size=(2, batch, 1, 1))
    rows = dy + np.arange(height)[None, :, None]
    columns = dx + np.arange(width)[None, None, :]
    return padded[np.arange(batch)[:, None, None], rows, columns]


def padded_batches(data: Dataset, *, batch_size: int) -> Iterator[tuple[Dataset, int]]:
    """All examples in order, in batches of one size: the last is filled up by its own last row.

    Yields:
      the batch, and how many of its examples count (the first ones).
    """
    for start in range(0, len(data.labels), batch_size):
        batch = Dataset(*(leaf[start : start + batch_size] for leaf in data))
        count = len(batch.labels)
        missing = batch_size - count
        yield Dataset(*(np.concatenate([a, a[-1:].repeat(missing, 0)]) for a in batch)), count
