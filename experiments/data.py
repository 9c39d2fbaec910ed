"""What a run learns from: one dataclass of configuration a data set, and the task built from it."""

import dataclasses
import hashlib
import math
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from jdeq.data import (
    CIFAR10,
    IGNORED,
    MNIST,
    SVHN,
    Corpus,
    Dataset,
    ImageBatches,
    OrderedImageBatches,
    PadCropFlip,
    ShuffledBatches,
    ShuffledWindows,
    Streams,
    copy_memory,
    load_corpus,
    load_digits,
    load_stdlib,
    open_images,
    windows,
)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsData:
    """The digits and how they are batched."""

    test_fraction: float = 0.2
    """Share of the images held out."""
    split_seed: int = 0
    """Which split; apart from the run's seed, so that seeds share a test set."""
    batch_size: int = 96
    max_shift: int = 0
    """Augmentation: each training image moved by up to so many pixels."""

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``."""
        digits = load_digits(test_fraction=self.test_fraction, seed=self.split_seed)
        batches = ShuffledBatches(
            data=digits.train,
            batch_size=self.batch_size,
            seed=seed,
            max_shift=self.max_shift,
            background=digits.background,
        )
        data = fingerprint(*digits.train, *digits.test)
        return Task(batches=batches, test=digits.test, classes=10, data=data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSetData:
    """A small image set of tensorflow-datasets, held in memory; see `jdeq.data.open_images`."""

    name: Literal["cifar10", "svhn_cropped", "mnist"]
    data_dir: str = "data"
    """Where it was prepared."""
    batch_size: int
    augment: bool = False
    """Training images are padded by 4, cropped at random, and mirrored half of the time."""

    def build(self, seed: int) -> Task:
        """Shuffled and augmented by ``seed``."""
        if self.augment and self.name != "cifar10":
            raise ValueError(
                f"data.augment must be False for {self.name}, whose digits have no mirror images; "
                "got True"
            )
        (images,) = [images for images in (CIFAR10, SVHN, MNIST) if images.name == self.name]
        train, test = (open_images(images, s, data_dir=self.data_dir) for s in ("train", "test"))
        examples, tested = list(train), images.normalise(test)
        batches = ImageBatches(
            source=examples,
            images=images,
            batch_size=self.batch_size,
            recipe=PadCropFlip() if self.augment else None,
            seed=seed,
        )
        seen = np.stack([example.image for example in examples])
        data = fingerprint(seen, np.stack([example.label for example in examples]), *tested)
        return Task(batches=batches, test=tested, classes=images.classes, data=data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdlibData:
    """The Python standard library's own source files as bytes, in shuffled windows."""

    length: int
    """Bytes in a window."""
    batch_size: int = 16
    split_seed: int = 0
    """Which files are held out; apart from the run's seed, so that seeds share a test set."""
    contiguous: bool = False
    """Rows go on from batch to batch, for models with a memory; else windows are shuffled."""
    test_windows: int | None = 64
    """How many windows of the test text are evaluated, spread over it; None: all."""
    test_length: int | None = None
    """Bytes in such a window; a run that is ``contiguous`` reads it ``length`` at a time, with its
    memory. None: ``length``."""
    test_stride: int | None = None
    """From one window to the next, of which only the last so many bytes count; None: the windows
    do not overlap."""

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``."""
        return _text(self, seed)

    def corpus(self) -> Corpus:
        """The whole text."""
        return load_stdlib(seed=self.split_seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusData:
    """A folder of train, valid and test text, in shuffled windows; see `jdeq.data.load_corpus`."""

    directory: str
    """Where the files are."""
    tokenizer: str | None = None
    """A tokenizer.json, whose subwords are the tokens; None: words."""
    length: int
    """Tokens in a window."""
    batch_size: int = 32
    contiguous: bool = False
    """Rows go on from batch to batch, for models with a memory; else windows are shuffled."""
    test_windows: int | None = None
    """How many windows of the test text are evaluated, spread over it; None: all."""
    test_length: int | None = None
    """Tokens in such a window; a run that is ``contiguous`` reads it ``length`` at a time, with its
    memory. None: ``length``."""
    test_stride: int | None = None
    """From one window to the next, of which only the last so many tokens count; None: the windows
    do not overlap."""

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``."""
        return _text(self, seed)

    def corpus(self) -> Corpus:
        """The whole text."""
        return load_corpus(self.directory, tokenizer=self.tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyMemoryData:
    """The copy memory task; see `jdeq.data.copy_memory`."""

    delay: int
    """T: a symbol is to be answered T + 10 places later."""
    train_examples: int = 20_000
    test_examples: int = 2000
    batch_size: int = 32

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``; the examples are the same for all seeds."""
        train = copy_memory(self.train_examples, self.delay, seed=0)
        test = copy_memory(self.test_examples, self.delay, seed=1)
        return Task(
            batches=ShuffledBatches(data=train, batch_size=self.batch_size, seed=seed),
            test=test,
            classes=10,
            data=fingerprint(*train, *test),
        )


def _text(data: StdlibData | CorpusData, seed: int) -> Task:
    corpus = data.corpus()
    size = {"length": data.length, "batch_size": data.batch_size}
    if data.contiguous:
        batches = Streams(tokens=corpus.train, **size)
    else:
        batches = ShuffledWindows(tokens=corpus.train, seed=seed, **size)
    test_length = data.length if data.test_length is None else data.test_length
    if data.contiguous and test_length % data.length:
        raise ValueError(
            f"data.test_length must be a multiple of data.length ({data.length}) where "
            f"data.contiguous is True; got {test_length}"
        )
    test = windows(corpus.test, test_length, stride=data.test_stride)
    if data.test_windows is not None:
        rows = int((test.labels[:, -1] != IGNORED).sum())  # the last may be filled up
        if rows == 0:
            raise ValueError(
                f"data.test_length must be at most the {len(corpus.test) - 1} tokens of the test "
                f"text that are predicted; got {test_length}"
            )
        if not 1 <= data.test_windows <= rows:
            raise ValueError(f"data.test_windows must be in 1..{rows}; got {data.test_windows}")
        spread = np.linspace(0, rows - 1, data.test_windows).astype(int)
        test = Dataset(*(leaf[spread] for leaf in test))
    return Task(
        batches=batches,
        test=test,
        classes=corpus.vocab_size,
        data=fingerprint(corpus.train, *test),
        text=_units(corpus, test.labels[test.labels != IGNORED]),
        segment=data.length if data.contiguous and test_length > data.length else None,
    )


def _units(corpus: Corpus, labels: np.ndarray) -> TextUnits:
    """Counted over the labels that are scored, not over the whole text they were chosen from."""
    if corpus.unit == "subword":
        text = corpus.decode(labels)
        words = len(text.split()) + text.count("\n")
        return TextUnits("subword", len(text.encode()) / len(labels), words / len(labels))
    return TextUnits(corpus.unit, corpus.bytes_per_token.test, corpus.words_per_token.test)
