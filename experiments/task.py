"""What is learned: training batches, test examples, and the measures they are judged by."""

import dataclasses
import hashlib
import math
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from jdeq.data import Dataset, ImageSet, OrderedImageBatches
from jdeq.training import EvalStep, evaluate


class Batches(Protocol):
    """Batches of training data by position, see `jdeq.data.ShuffledBatches`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def batches_per_epoch(self) -> int: ...
    def __call__(self, position: int) -> Dataset: ...


class TextUnits(NamedTuple):
    """What a token of the test examples is, see `jdeq.data.Corpus`."""

    unit: Literal["byte", "word", "subword"]
    bytes_per_token: float
    words_per_token: float


class Pixels(NamedTuple):
    """How an image became an input: ``(pixel - mean) / std``, channel by channel."""

    largest: int
    """White, where 0 is black."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: ImageSet) -> "Pixels":
        """What `ImageSet.normalise` does to pixels of 0..255."""
        mean, std = (tuple(255 * value for value in values) for values in (images.mean, images.std))
        return cls(255, mean, std)


def fingerprint(*arrays: np.ndarray) -> str:
    """Twelve hexadecimal digits that tell one set of data from another."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Training batches and test examples; how many classes (or tokens) there are to tell apart, 0
    where labels are numbers.
    """

    batches: Batches
    test: Dataset
    classes: int
    data: str
    """The `fingerprint` of what is trained and tested on; of a sample of it where that is read on
    the way."""
    text: TextUnits | None = None
    """None where the examples are not text."""
    scored: OrderedImageBatches | None = None
    """What is evaluated in place of ``test`` where that is a part of it: too much to be held."""
    pixels: Pixels | None = None
    """None where the examples are not images."""
    segment: int | None = None
    """How much of a test example a model with a memory reads at a time; None: all of it."""

    @property
    def quality(
        self,
    ) -> Literal["accuracy", "mean_iou", "bits_per_byte", "word_perplexity", "rmse"]:
        """The measure that runs are compared by."""
        if self.regression:
            return "rmse"
        if self.text is None:
            return "mean_iou" if self.labels_pixels else "accuracy"
        return "word_perplexity" if self.text.unit == "word" else "bits_per_byte"

    @property
    def has_images(self) -> bool:
        """Whether an example is an image, [height, width, channels]."""
        return self.test.inputs.ndim == 4

    @property
    def labels_pixels(self) -> bool:
        """Whether an example is an image with a label for each pixel."""
        return self.test.labels.ndim == 3

    @property
    def regression(self) -> bool:
        """Whether a label is a number, not a class."""
        return np.issubdtype(self.test.labels.dtype, np.floating)

    @property
    def test_examples(self) -> int:
        """How many examples are evaluated."""
        return len(self.test.labels if self.scored is None else self.scored.source)

    @property
    def test_batch_size(self) -> int:
        """Test examples evaluated at once; few of a text, whose logits are the larger."""
        rows = self.batches.batch_size * (4 if self.text is None else 1)
        return min(len(self.test.labels), rows)

    def test_inputs(self, examples: int) -> np.ndarray:
        """The inputs of the first test examples, or the first segments of those."""
        inputs = self.test.inputs[:examples]
        return inputs if self.segment is None else inputs[:, : self.segment]

    def rows(self, rows: slice) -> Batches:
        """Only these rows of each training batch, one of the equal blocks that it divides into."""
        size = rows.stop - rows.start
        if size == self.batches.batch_size:
            return self.batches
        shards = {"shard": rows.start // size, "num_shards": self.batches.batch_size // size}
        batches: Any = self.batches
        if hasattr(batches, "part"):
            return batches.part(**shards)
        return dataclasses.replace(batches, **shards)

    @property
    def items(self) -> tuple[str, int]:
        """What throughput counts, and how many a batch has."""
        if self.text is None:
            return "examples", self.batches.batch_size
        return "tokens", self.batches(0).labels.size

    def evaluate(
        self, step: EvalStep, variables: dict[str, Any], *, batch_size: int | None = None
    ) -> dict[str, float]:
        """Quality and statistics of the solver on the test examples, ``batch_size`` of those that
        are held in memory at once; None: ``test_batch_size``.
        """
        batch_size = batch_size or self.test_batch_size
        means = evaluate(
            step,
            variables,
            self.scored or self.test,
            batch_size=batch_size if self.scored is None else None,
            classes=self.classes if self.labels_pixels else None,
        )
        return self.measures(means)

    def measures(self, means: dict[str, float]) -> dict[str, float]:
        """The means of `jdeq.training.evaluate` on the test examples, for text in its units, of a
        regression with the root of the mean squared error, in the units of the labels.

        Bits per byte, but not for words: a rare one is replaced by a token that does not say which
        it was. Where a token is not a byte, perplexities that say what they are per.
        """
        if self.text is None:
            return means | ({"rmse": math.sqrt(means["loss_nats"])} if self.regression else {})
        nats, text = means["loss_nats"], self.text
        units = {}
        if text.unit != "word":
            units["bits_per_byte"] = nats / math.log(2) / text.bytes_per_token
        if text.unit != "byte":
            units["word_perplexity"] = float(np.exp(nats / text.words_per_token))
        if text.unit == "subword":
            units["subword_perplexity"] = float(np.exp(nats))
        return means | units
