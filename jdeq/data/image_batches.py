"""Batches of images that are read and augmented on the way, addressed by position."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from jdeq.data.augment import Example, Recipe
from jdeq.data.batches import Dataset, permutation
from jdeq.data.images import ImageSet
from jdeq.data.shards import check_shards, shard_rows

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatches:
    """Shuffled training batches, ``normalise(recipe(source[permutation(seed, epoch)]))``.

    A position is ``epoch * batches_per_epoch + i``, so resuming in the middle of an epoch needs
    this one integer. Order and augmentation are numpy's, seeded by (seed, epoch) and by
    (seed, epoch, example): the same from any start, for any number of hosts and threads. Each
    epoch leaves out the ``len(source) % batch_size`` examples that do not fill a batch.

    Args:
      source: an `ImageSource`, or a list of examples.
      images: the set, for its normalisation.
      batch_size: rows of the global batch, in 1..len(source), a multiple of num_shards.
      recipe: the augmentation; None leaves the images as they are.
      seed: of order and augmentation, >= 0.
      shard: which part of each global batch comes out, in 0..num_shards - 1: the rows
        ``[shard B / num_shards, (shard + 1) B / num_shards)``, what a host contributes to
        ``jax.make_array_from_process_local_data``.
      num_shards: how many parts (hosts) there are.
    Raises:
      ValueError: when built, if batch_size, shard or num_shards is not as above.
    Cost: one permutation an epoch, kept for the epoch; a batch reads its own rows only.
    """

    source: Sequence[Example]
    images: ImageSet
    batch_size: int
    recipe: Recipe | None = None
    seed: int = 0
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self):
        check_shards("ImageBatches", self.batch_size, self.shard, self.num_shards)
        if self.batch_size > len(self.source):
            raise ValueError(
                f"jdeq.data.ImageBatches: batch_size must be in 1..{len(self.source)}, the number "
                f"of examples; got {self.batch_size}"
            )

    @property
    def batches_per_epoch(self) -> int:
        return len(self.source) // self.batch_size

    def indices(self, position: int) -> Int[np.ndarray, " batch"]:
        """Which examples this shard reads at ``position``."""
        epoch, index = divmod(position, self.batches_per_epoch)
        # numpy's, not grain's shuffle: this reads nothing, and does not hang on grain's version.
        order = permutation(self.seed, epoch, len(self.source))
        batch = order[index * self.batch_size : (index + 1) * self.batch_size]
        return batch[shard_rows(self.batch_size, self.shard, self.num_shards)]

    def __call__(self, position: int) -> Dataset:
        """This shard's rows of the batch at ``position``."""
        epoch = position // self.batches_per_epoch
        chosen = self.indices(position)
        return self.images.normalise(self._augmented(int(i), epoch) for i in chosen)

    def _augmented(self, index: int, epoch: int) -> Example:
        example = self.source[index]
        if self.recipe is None:
            return example
        return self.recipe(example, np.random.default_rng((self.seed, 1, epoch, index)))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OrderedImageBatches:
    """All examples in order, for evaluation; the last batch is filled up by the last example.

    Args:
      source: an `ImageSource`, or a list of examples.
      images: the set, for its normalisation.
      batch_size: rows of the global batch, >= 1, a multiple of num_shards.
      recipe: resizes and crops, without chance; None leaves the images as they are.
      shard: which part of each global batch comes out, as in `ImageBatches`.
      num_shards: how many parts (hosts) there are.
    Raises:
      ValueError: when built, if batch_size, shard or num_shards is not as above.
    """

    source: Sequence[Example]
    images: ImageSet
    batch_size: int
    recipe: Recipe | None = None
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self):
        check_shards("OrderedImageBatches", self.batch_size, self.shard, self.num_shards)

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __call__(self, position: int) -> tuple[Dataset, int]:
        """This shard's rows of the batch, and how many of them count (the first ones)."""
        last = len(self.source) - 1
        rows = shard_rows(self.batch_size, self.shard, self.num_shards)
        start, size = position * self.batch_size + rows.start, rows.stop - rows.start
        count = min(max(last + 1 - start, 0), size)
        read = range(start, start + count) or [last]
        examples = [self._resized(i) for i in read]
        examples += examples[-1:] * (size - len(examples))
        return self.images.normalise(examples), count

    def _resized(self, index: int) -> Example:
        example = self.source[index]
        return self.recipe(example, np.random.default_rng(0)) if self.recipe else example


def prefetched(
    batches: Callable[[int], T], *, start: int = 0, stop: int = sys.maxsize, ahead: int = 8
) -> Iterator[T]:
    """``batches(start), batches(start + 1), ...``, made by background threads, in order.

    An exception in a thread comes out of the iterator, at its position. Closing the iterator (or
    leaving it to the garbage collector) ends the threads.

    Args:
      batches: a pure function of the position, as `ImageBatches` and `ShuffledBatches` are.
      start: the first position.
      stop: the one after the last; without it there is no end.
      ahead: batches held ready or in the making, >= 1; there are as many threads, up to the
        number of cores.
    Raises:
      ValueError: if ``ahead`` is below 1 (when the first batch is asked for).
    Cost: the memory of ``ahead`` batches.
    """
    import grain

    if ahead < 1:
        raise ValueError(f"jdeq.data.prefetched: ahead must be >= 1; got {ahead}")
    options = grain.ReadOptions(
        num_threads=min(ahead, os.cpu_count() or 1), prefetch_buffer_size=ahead
    )
    iterator = iter(grain.MapDataset.range(start, stop).map(batches).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
