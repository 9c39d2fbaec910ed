"""Image sets that are too large to be held, and scenes to be segmented; see data.py."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.task import Pixels, Task, fingerprint
from jdeq.data import (
    CITYSCAPES,
    IMAGENET,
    SCENES,
    Dataset,
    Example,
    ImageBatches,
    OrderedImageBatches,
    ResizeCentreCrop,
    ResizedCropFlip,
    ScaleCropFlip,
    ShuffledBatches,
    load_scenes,
    open_images,
    prefetched,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetData:
    """ImageNet, read on the way: random boxes to train on, the centre to be tested on."""

    data_dir: str = "data"
    """Where it was prepared."""
    batch_size: int
    side: int = 224
    """Of the images, in pixels; for the test the shorter side is first made 8/7 of it."""
    held: int = 64
    """Test images held in memory, for pictures and the spectral radius; all are scored."""

    def build(self, seed: int) -> Task:
        """Shuffled and augmented by ``seed``."""
        train, validation = (
            open_images(IMAGENET, part, data_dir=self.data_dir) for part in ("train", "validation")
        )
        _check(self, batch_size=len(train), side=None, held=len(validation))
        batches = ImageBatches(
            source=train,
            images=IMAGENET,
            batch_size=self.batch_size,
            recipe=ResizedCropFlip(size=self.side),
            seed=seed,
        )
        scored = OrderedImageBatches(
            source=validation,
            images=IMAGENET,
            batch_size=self.batch_size,
            recipe=ResizeCentreCrop(resize=8 * self.side // 7, size=self.side),
        )
        return _read_on_the_way(batches, scored, self.held)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CityscapesData:
    """Cityscapes, read on the way: scaled and cropped to train on, whole to be tested on."""

    data_dir: str = "data"
    """Where it was prepared."""
    batch_size: int
    height: int = 512
    """Of the crops, in pixels."""
    width: int = 1024
    test_batch_size: int = 4
    held: int = 4
    """Test images held in memory, for pictures and the spectral radius; all are scored."""

    def build(self, seed: int) -> Task:
        """Shuffled and augmented by ``seed``."""
        train, validation = (
            open_images(CITYSCAPES, part, data_dir=self.data_dir)
            for part in ("train", "validation")
        )
        _check(self, batch_size=len(train), held=len(validation))
        _check(self, height=None, width=None, test_batch_size=None)
        batches = ImageBatches(
            source=train,
            images=CITYSCAPES,
            batch_size=self.batch_size,
            recipe=ScaleCropFlip(height=self.height, width=self.width),
            seed=seed,
        )
        scored = OrderedImageBatches(
            source=validation,
            images=CITYSCAPES,
            batch_size=self.test_batch_size,
        )
        return _read_on_the_way(batches, scored, self.held)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesData:
    """Scenes of digits with the class of each pixel; see `jdeq.data.load_scenes`."""

    train_scenes: int = 256
    test_scenes: int = 64
    batch_size: int = 8

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``; the scenes are the same for all seeds."""
        _check(self, train_scenes=None, test_scenes=None, batch_size=self.train_scenes)
        scenes = load_scenes(train=self.train_scenes, test=self.test_scenes)
        return Task(
            batches=ShuffledBatches(data=scenes.train, batch_size=self.batch_size, seed=seed),
            test=scenes.test,
            classes=SCENES.classes,
            data=fingerprint(*scenes.train, *scenes.test),
            pixels=Pixels.of(SCENES),
        )


@dataclasses.dataclass(eq=False)
class ReadAhead:
    """``batches(position)``, made by background threads while positions follow one another.

    Any other position is read at once, and alone.
    """

    batches: ImageBatches
    _next: int = -1
    _iterator: Iterator[Dataset] | None = None

    @property
    def batch_size(self) -> int:
        """Of the batches."""
        return self.batches.batch_size

    def part(self, shard: int, num_shards: int) -> "ReadAhead":
        """The same for one shard of each batch."""
        return ReadAhead(dataclasses.replace(self.batches, shard=shard, num_shards=num_shards))

    @property
    def batches_per_epoch(self) -> int:
        """Of the batches."""
        return self.batches.batches_per_epoch

    def __call__(self, position: int) -> Dataset:
        """The batch at ``position``; a jump, or an exception, ends the threads."""
        iterator, self._iterator = self._iterator, None
        if position == self._next:
            iterator = iterator or prefetched(self.batches, start=position)
            batch = next(iterator)
            self._iterator = iterator
        else:
            batch = self.batches(position)
        self._next = position + 1
        return batch


def _read_on_the_way(batches: ImageBatches, scored: OrderedImageBatches, held: int) -> Task:
    test, _ = dataclasses.replace(scored, batch_size=held)(0)
    return Task(
        batches=ReadAhead(batches),
        test=test,
        scored=scored,
        classes=batches.images.classes,
        pixels=Pixels.of(batches.images),
        data=fingerprint(
            *_sample(batches.source),
            *_sample(scored.source),
            np.frombuffer(repr(scored.recipe).encode(), np.uint8),
        ),
    )


def _sample(source: Sequence[Example]) -> list[np.ndarray]:
    """How many examples there are, and eight of them, spread over all."""
    spread = np.linspace(0, len(source) - 1, 8).astype(int)
    return [np.array(len(source)), *(leaf for i in spread for leaf in source[int(i)])]


def _check(data: Any, **most: int | None) -> None:
    """Refuse a field below 1, or above its ``most``."""
    for name, top in most.items():
        value = getattr(data, name)
        if value < 1 or (top is not None and value > top):
            rule = "be >= 1" if top is None else f"be in 1..{top}"
            raise ValueError(f"data.{name} must {rule}; got {value}")
