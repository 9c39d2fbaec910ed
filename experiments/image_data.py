"""Image sets that are too large to be held, and scenes to be segmented; see data.py."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from experiments.data import Task, fingerprint
from jdeq.data import (
    CITYSCAPES,
    IMAGENET,
    SCENES,
    Dataset,
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
        source = open_images(IMAGENET, "train", data_dir=self.data_dir)
        batches = ImageBatches(
            source=source,
            images=IMAGENET,
            batch_size=self.batch_size,
            recipe=ResizedCropFlip(size=self.side),
            seed=seed,
        )
        scored = OrderedImageBatches(
            source=open_images(IMAGENET, "validation", data_dir=self.data_dir),
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
        batches = ImageBatches(
            source=open_images(CITYSCAPES, "train", data_dir=self.data_dir),
            images=CITYSCAPES,
            batch_size=self.batch_size,
            recipe=ScaleCropFlip(height=self.height, width=self.width),
            seed=seed,
        )
        scored = OrderedImageBatches(
            source=open_images(CITYSCAPES, "validation", data_dir=self.data_dir),
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
        scenes = load_scenes(train=self.train_scenes, test=self.test_scenes)
        return Task(
            batches=ShuffledBatches(data=scenes.train, batch_size=self.batch_size, seed=seed),
            test=scenes.test,
            classes=SCENES.classes,
            data=fingerprint(*scenes.train, *scenes.test),
        )


@dataclasses.dataclass(eq=False)
class ReadAhead:
    """``batches(position)``, made by background threads while positions follow one another."""

    batches: ImageBatches
    _next: int = -1
    _iterator: Iterator[Dataset] | None = None

    @property
    def batch_size(self) -> int:
        """Of the batches."""
        return self.batches.batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Of the batches."""
        return self.batches.batches_per_epoch

    def __call__(self, position: int) -> Dataset:
        """The batch at ``position``; a jump ends the threads and starts others."""
        if self._iterator is None or position != self._next:
            self._iterator = prefetched(self.batches, start=position)
        self._next = position + 1
        return next(self._iterator)


def _read_on_the_way(batches: ImageBatches, scored: OrderedImageBatches, held: int) -> Task:
    if not 1 <= held <= len(scored.source):
        raise ValueError(f"data.held must be in 1..{len(scored.source)}; got {held}")
    first = dataclasses.replace(scored, batch_size=held)
    test, _ = first(0)
    sizes = np.array([len(batches.source), len(scored.source)])
    return Task(
        batches=ReadAhead(batches),
        test=test,
        scored=scored,
        classes=batches.images.classes,
        data=fingerprint(sizes, *test),
    )
