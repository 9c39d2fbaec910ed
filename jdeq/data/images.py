"""Image sets prepared by tensorflow-datasets, read as random-access files without TensorFlow.

``source = open_images(CIFAR10, "train", data_dir=DIR)`` is a sequence of `Example`; nothing but
the files under DIR is looked at, so a machine without network never waits. ``list(source)`` holds
a small set in memory, decoded; ``CIFAR10.normalise(source)`` makes it a `Dataset`.
"""

import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from jdeq.data.augment import Example
from jdeq.data.batches import IGNORED, Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of the tensorflow-datasets catalogue, and how its pixels are normalised.

    Args:
      name: in the catalogue.
      config: of the catalogue's builder; "" where it has none.
      channels: of an image.
      mean: of each channel, pixels in 0..1.
      std: of each channel.
      classes: labels are 0..classes - 1.
      image_key: the image's name in a record.
      label_key: the label's.
      label_ids: for pictures of labels: the class (or `IGNORED`) of each value on disk.
    """

    name: str
    config: str = ""
    channels: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 10
    image_key: str = "image"
    label_key: str = "label"
    label_ids: tuple[int, ...] = ()

    def normalise(self, examples: Iterable[Example]) -> Dataset:
        """The examples as one array each: ``(pixels / 255 - mean) / std`` and the labels.

        Returns:
          images float32 [examples, height, width, channels]; labels int32 [examples] or
          [examples, height, width].
        Raises:
          ValueError: if the images differ in size.
        """
        images, labels = zip(*examples, strict=True)
        if len({image.shape for image in images}) > 1:
            sizes = sorted({image.shape for image in images})
            raise ValueError(
                f"jdeq.data: images of one batch must have one size; got {sizes[0]} and {sizes[-1]}"
                f" of {self.name}; crop or resize them"
            )
        pixels = np.stack(images).astype(np.float32)
        pixels -= 255 * np.asarray(self.mean, np.float32)
        pixels /= 255 * np.asarray(self.std, np.float32)
        return Dataset(pixels, np.stack(labels))


# The values in the training scripts of the papers. Those of CIFAR-10 are the usual ones, whose
# std is the mean of each image's own, smaller than that over all pixels (0.2470, 0.2435, 0.2616),
# by which the script of monDEQ divides.
CIFAR10 = ImageSet(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
SVHN = ImageSet(name="svhn_cropped", mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))
MNIST = ImageSet(name="mnist", channels=1, mean=(0.1307,), std=(0.3081,))
IMAGENET = ImageSet(
    name="imagenet2012", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000
)
# The files hold 34 ids, of which the benchmark scores 19 (7 road, 8 sidewalk, ... 33 bicycle).
_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES = ImageSet(
    name="cityscapes",
    config="semantic_segmentation",
    mean=IMAGENET.mean,
    std=IMAGENET.std,
    classes=19,
    image_key="image_left",
    label_key="segmentation_label",
    label_ids=tuple(_SCORED.index(i) if i in _SCORED else IGNORED for i in range(34)),
)


class ImageSource(Sequence[Example]):
    """The examples of a split, each decoded when it is asked for; safe to read from threads.

    A record that cannot be used raises a ValueError that names it: an image that cannot be
    decoded or has another number of channels, a label outside the set's range.
    """

    def __init__(self, images: ImageSet, name: str, records: Sequence[Any]):
        self.images = images
        self.name = name  # for messages
        self._records = records  # of tensorflow-datasets, images not decoded

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:  # as Sequence has it: a slice gives a list
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self!r}: no example {index}")
        index = int(index) % len(self)
        try:
            return self._example(self._records[index])
        except Exception as error:  # damaged bytes: whatever the reader or Pillow makes of them
            raise ValueError(f"{self!r}, example {index}: {error}") from error

    def __repr__(self) -> str:
        return f"jdeq.data.ImageSource({self.name}, {len(self)} examples)"

    def _example(self, record: dict[str, Any]) -> Example:
        images = self.images
        image = _decode(record[images.image_key], channels=images.channels)
        if not images.label_ids:
            label = np.asarray(record[images.label_key], np.int32)
            if not 0 <= label < images.classes:
                raise ValueError(f"the label must lie in 0..{images.classes - 1}; got {label}")
            return Example(image, label)
        return Example(image, self._classes(_decode(record[images.label_key], channels=1), image))

    def _classes(self, ids: np.ndarray, image: np.ndarray) -> Int32[np.ndarray, "height width"]:
        table = np.asarray(self.images.label_ids, np.int32)
        if ids.max() >= len(table):
            raise ValueError(f"the label's values must lie in 0..{len(table) - 1}; got {ids.max()}")
        if ids.shape[:2] != image.shape[:2]:
            raise ValueError(f"the label has size {ids.shape[:2]}, its image {image.shape[:2]}")
        return table[ids[..., 0]]


def open_images(images: ImageSet, split: str, *, data_dir: str | os.PathLike[str]) -> ImageSource:
    """The split of an image set that was prepared under ``data_dir``.

    Args:
      images: which set, as `CIFAR10`.
      split: "train", or a part or sum of splits: "train[:90%]", "train+extra".
      data_dir: a local folder, the one given to the command that prepared the set.
    Raises:
      FileNotFoundError: if the set or one of its files is missing; with the command to prepare it.
      ValueError: if it has no such split, or was not prepared as array_record.
    Cost: milliseconds, whatever the size of the set; the first call imports tensorflow-datasets.
    """
    import tensorflow_datasets as tfds

    folder = _newest(pathlib.Path(data_dir) / images.name / images.config)
    if folder is None:
        raise FileNotFoundError(
            f"jdeq.data.open_images: no {images.name} under {data_dir}; {_how_to(images, data_dir)}"
        )
    builder: Any = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"jdeq.data.open_images: the files in {folder} must be array_record; they are "
            f"{file_format and file_format.value}; remove them, and {_how_to(images, data_dir)}"
        )
    splits: Any = builder.info.splits
    try:
        info = splits[split]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"jdeq.data.open_images: split must be of {', '.join(splits)} (or as in the "
            f"documentation of tensorflow-datasets); got {split!r} of {images.name}: {error}"
        ) from error
    if info.num_examples < 1:
        raise ValueError(f"jdeq.data.open_images: split must hold examples; {split!r} is empty")
    for file in info.filepaths:
        if not os.path.exists(file):
            raise FileNotFoundError(
                f"jdeq.data.open_images: {file} is missing; remove {folder}, and "
                f"{_how_to(images, data_dir)}"
            )
    encoded = {images.image_key: tfds.decode.SkipDecoding()}
    if images.label_ids:
        encoded[images.label_key] = tfds.decode.SkipDecoding()
    records: Any = builder.as_data_source(split, decoders=encoded)
    return ImageSource(images, f"{split!r} of {folder}", records)


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the highest version; one that is still being written has another name."""
    written = (file.parent for file in folder.glob("*/dataset_info.json"))
    versions = [f for f in written if re.fullmatch(r"\d+\.\d+\.\d+", f.name)]
    return max(versions, key=lambda f: [int(n) for n in f.name.split(".")], default=None)


def _how_to(images: ImageSet, data_dir: str | os.PathLike[str]) -> str:
    name = f"{images.name}/{images.config}".rstrip("/")
    return (
        "prepare it once, where the extra jdeq[prepare] is installed:\n"
        f"  tfds build {name} --data_dir {data_dir} --file_format array_record\n"
        "or write a small stand-in of the same format:\n"
        f"  python -m experiments.prepare_local {images.name} --data-dir {data_dir}"
    )


def _decode(data: bytes, *, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if channels == 3 and image.format == "JPEG" and image.mode == "L":
            image = image.convert("RGB")  # ImageNet holds some grey photographs
        array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.shape[-1] != channels:
        raise ValueError(
            f"the image must have {channels} channels of 8 bits; got {array.shape[-1]} of "
            f"{8 * array.dtype.itemsize}"
        )
    return array
