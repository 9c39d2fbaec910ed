"""Tokens as inputs and next tokens: shuffled windows, streams for models with memory, in order."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Integer

from jdeq.data.batches import IGNORED, Dataset
from jdeq.data.shards import check_shards, shard_rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShuffledWindows:
    """Shuffled windows, ``w = tokens[s : s + length + 1]``: inputs w[:-1], labels w[1:].

    A position is ``epoch * batches_per_epoch + i``: resuming in the middle of an epoch needs this
    one integer. Each epoch has its own offset < length and its own order: windows start at
    ``offset + k length``, so no token is predicted twice, and other tokens meet at the boundaries.
    Fewer than ``(batch_size + 1) length`` tokens are left out of an epoch.

    Args:
      tokens: ids, an array in memory or memory-mapped.
      length: of a window, >= 1.
      batch_size: windows in a batch, over all shards.
      seed: of offsets and orders.
      shard: which rows of every batch are made here: block ``shard`` of ``num_shards`` equal ones.
      num_shards: divides ``batch_size``.
    Raises:
      ValueError: when built, if a number is out of range or the tokens fill no batch.
    Cost: one permutation of the windows an epoch, kept for the epoch.
    """

    tokens: Integer[np.ndarray, " tokens"]
    length: int
    batch_size: int
    seed: int = 0
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self):
        _check(self, needed=self.length * (self.batch_size + 1))

    @property
    def batches_per_epoch(self) -> int:
        return self._windows // self.batch_size

    @property
    def _windows(self) -> int:
        # As many as fit behind the largest offset, so that every epoch has the same number.
        return (len(self.tokens) - self.length) // self.length

    def __call__(self, position: int) -> Dataset:
        """The batch at ``position``: int32 [batch_size / num_shards, length], twice."""
        epoch, index = divmod(position, self.batches_per_epoch)
        offset, order = _offset_and_order(self.seed, epoch, self.length, self._windows)
        batch = order[index * self.batch_size : (index + 1) * self.batch_size]
        return _gather(self.tokens, offset + self.length * batch[_rows(self)], self.length)


@functools.lru_cache(maxsize=2)
def _offset_and_order(seed: int, epoch: int, length: int, windows: int) -> tuple[int, np.ndarray]:
    rng = np.random.default_rng((seed, epoch))
    return int(rng.integers(length)), rng.permutation(windows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Streams:
    """The text in ``batch_size`` rows, read side by side, ``length`` tokens at a time.

    Row r of a pass is a contiguous text, and the batch at position p + 1 goes on where that at p
    ended, so that a memory of the one serves the other, except where `starts` says that a pass
    begins. The labels of a batch are the tokens one further on. Left out, at the end of the text,
    are fewer than ``batch_size length`` tokens.

    Args:
      tokens: ids, an array in memory or memory-mapped.
      length: tokens a row and batch, >= 1.
      batch_size: rows, over all shards.
      shard: which rows are made here: block ``shard`` of ``num_shards`` equal ones.
      num_shards: divides ``batch_size``.
    Raises:
      ValueError: when built, if a number is out of range or the tokens fill no batch.
    Cost: no memory beyond the batch.
    """

    tokens: Integer[np.ndarray, " tokens"]
    length: int
    batch_size: int
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self):
        _check(self, needed=self.length * self.batch_size + 1)

    @property
    def batches_per_epoch(self) -> int:
        return (len(self.tokens) - 1) // (self.batch_size * self.length)

    def starts(self, position: int) -> bool:
        """Whether a pass begins at ``position``: what came before is not its past."""
        return position % self.batches_per_epoch == 0

    def __call__(self, position: int) -> Dataset:
        """The batch at ``position``: int32 [batch_size / num_shards, length], twice."""
        segments = self.batches_per_epoch
        rows = np.arange(self.batch_size)[_rows(self)]
        starts = (rows * segments + position % segments) * self.length
        return _gather(self.tokens, starts, self.length)


def windows(
    tokens: Integer[np.ndarray, " tokens"], length: int, *, stride: int | None = None
) -> Dataset:
    """The whole text in order: every token but the first is predicted exactly once.

    Row i holds inputs ``tokens[i stride : i stride + length]``, and as labels the tokens one
    further on: in the first row all of them, in the others the last ``stride``, each of which is so
    predicted from at least ``length - stride`` tokens before it. Other labels are `IGNORED`, which
    a loss has to leave out; the last row is filled up with those, and with inputs 0.

    Args:
      tokens: ids, at least 2.
      length: of a row, >= 1.
      stride: in 1..length; None: ``length``, so that the rows do not overlap.
    Returns:
      inputs and labels, int32 [rows, length].
    Raises:
      ValueError: if a number is out of range.
    Cost: ``8 length / stride`` bytes a token.
    """
    for name, value, least in (
        ("the number of tokens", len(tokens), 2),
        ("length", length, 1),
    ):
        if value < least:
            raise ValueError(f"jdeq.data.windows: {name} must be >= {least}; got {value}")
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"jdeq.data.windows: stride must be in 1..{length}; got {stride}")
    count = len(tokens) - 1
    rows = 1 + max(0, -(-(count - length) // stride))
    inputs = np.zeros((rows, length), np.int32)
    labels = np.full((rows, length), IGNORED, np.int32)
    for row in range(rows):
        text = tokens[row * stride : row * stride + length + 1]
        inputs[row, : len(text) - 1] = text[:-1]
        labels[row, : len(text) - 1] = text[1:]
    labels[1:, : length - stride] = IGNORED
    return Dataset(inputs, labels)


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> Dataset:
    # Slices, not one index array: a memory-mapped file is then read in contiguous pieces.
    rows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int32)
    return Dataset(rows[:, :-1], rows[:, 1:])


def _rows(batches: ShuffledWindows | Streams) -> slice:
    return shard_rows(batches.batch_size, batches.shard, batches.num_shards)


def _check(batches: ShuffledWindows | Streams, *, needed: int) -> None:
    name = f"jdeq.data.{type(batches).__name__}"
    if batches.tokens.ndim != 1:
        raise ValueError(f"{name}: tokens must have one axis; got shape {batches.tokens.shape}")
    if batches.length < 1:
        raise ValueError(f"{name}: length must be >= 1; got {batches.length}")
    check_shards(type(batches).__name__, batches.batch_size, batches.shard, batches.num_shards)
    if len(batches.tokens) < needed:
        raise ValueError(
            f"{name}: tokens must be at least {needed} for one batch of {batches.batch_size} "
            f"windows of {batches.length}; got {len(batches.tokens)}"
        )
