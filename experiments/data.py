"""What a run learns from: one dataclass of configuration a data set, which builds its task."""

import dataclasses
from typing import Literal

import numpy as np

from experiments.task import Pixels, Task, TextUnits, fingerprint
from jdeq.data import (
    CIFAR10,
    IGNORED,
    MNIST,
    SVHN,
    Corpus,
    Dataset,
    ImageBatches,
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
        pixels = Pixels(16, (digits.mean,), (digits.std,))
        return Task(batches=batches, test=digits.test, classes=10, data=data, pixels=pixels)


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
        return Task(
            batches=batches,
            test=tested,
            classes=images.classes,
            data=data,
            pixels=Pixels.of(images),
        )


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
