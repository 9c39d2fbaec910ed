"""A small stand-in for an image set: ``python -m experiments.prepare_local NAME --data-dir DIR``.

NAME is one of cifar10, svhn_cropped, mnist, imagenet2012, cityscapes. The files have the format,
version and features that tensorflow-datasets gives the real set, so `jdeq.data.open_images` reads
them by the same path; what they show are the 1797 handwritten digits inside scikit-learn. For
pipelines and tests: a score on them says nothing about the real set.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow_datasets as tfds
import tyro
from PIL import Image

from experiments.cli import command
from jdeq.data import CITYSCAPES, IGNORED
from jdeq.data.scenes import digit_parts, draw_scenes, paint, resize_digit

Name = Literal["cifar10", "svhn_cropped", "mnist", "imagenet2012", "cityscapes"]
UNSCORED_ID = 0  # counted by no score

Records = Callable[[], Iterator[dict[str, Any]]]  # the examples of a split


def prepare(name: Name, data_dir: str | pathlib.Path) -> pathlib.Path:
    """The folder of the stand-in, written under ``data_dir``.

    Raises:
      FileExistsError: if a set of this name and version is there already, real or not.
    """
    makers: dict[str, Callable[[], dict[str, Records]]] = {
        "cifar10": functools.partial(_small_images, size=32, splits=("train", "test")),
        "svhn_cropped": functools.partial(_small_images, size=32, splits=("train", "test")),
        "mnist": functools.partial(_small_images, size=28, splits=("train", "test")),
        "imagenet2012": _photographs,
        "cityscapes": _scenes,
    }
    builder = _builder(name, makers[name](), data_dir)
    if pathlib.Path(builder.data_dir).exists():
        raise FileExistsError(f"{builder.data_dir} is there already; choose another --data-dir")
    tfds.disable_progress_bar()
    with (
        tempfile.TemporaryDirectory() as unused,  # the default leaves a folder in data_dir
        contextlib.redirect_stdout(io.StringIO()),  # "Downloading ...", which it does not
    ):
        builder.download_and_prepare(
            download_dir=unused,
            file_format="array_record",
            # No probe of cloud storage, for which a machine without network would wait.
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    return pathlib.Path(builder.data_dir)


def _builder(name: str, splits: dict[str, Records], data_dir: str | pathlib.Path) -> Any:
    """A writer with the catalogue's name, version, configuration and features."""
    real: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    facts = {
        "name": name,
        "VERSION": tfds.core.Version(str(real.version)),
        "__module__": __name__,
        "_info": lambda self: tfds.core.DatasetInfo(
            builder=self,
            features=real.info.features,
            description=f"Not {name}: handwritten digits of scikit-learn, in its format.",
        ),
        "_split_generators": lambda self, _: {
            split: self._generate_examples(records) for split, records in splits.items()
        },
        "_generate_examples": lambda self, records: enumerate(records()),
    }
    if real.builder_config is not None:
        config = tfds.core.BuilderConfig(name=real.builder_config.name, version=real.version)
        facts["BUILDER_CONFIGS"] = [config]
    local: Any = types.new_class(
        "Local",
        (tfds.core.GeneratorBasedBuilder,),
        {"skip_registration": True},  # the catalogue has one of this name
        lambda namespace: namespace.update(facts),
    )
    return local(data_dir=data_dir, file_format="array_record")


def _encoded(image: np.ndarray, file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format)
    return buffer.getvalue()


def _small_images(size: int, splits: Sequence[str]) -> dict[str, Records]:
    """cifar10, svhn_cropped (with colours), mnist (28 pixels, without)."""

    def records(split: str, images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(len(images))
        for index, (digit, label) in enumerate(zip(images, labels, strict=True)):
            grey = resize_digit(digit, size)
            if size == 28:
                yield {"image": _encoded(grey, "PNG"), "label": int(label)}
            else:
                image = _encoded(paint(grey, rng), "PNG")
                yield {"id": f"{split}_{index:05d}", "image": image, "label": int(label)}

    return {
        split: functools.partial(records, split, *part)
        for split, part in zip(splits, digit_parts(), strict=True)
    }


def _photographs() -> dict[str, Records]:
    """imagenet2012: JPEG files of many sizes and shapes, some of them grey as in the real set."""

    def records(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(len(images))
        for index, (digit, label) in enumerate(zip(images, labels, strict=True)):
            height, width = (int(n) for n in rng.integers(200, 360, 2))
            size = min(height, width)
            canvas = np.zeros((height, width), np.uint8)
            y, x = (height - size) // 2, (width - size) // 2
            canvas[y : y + size, x : x + size] = resize_digit(digit, size)
            image = canvas if index % 20 == 0 else paint(canvas, rng)
            yield {
                "image": _encoded(image, "JPEG"),
                "label": int(label),
                "file_name": f"digit_{label}_{index}.JPEG",
            }

    train, validation = digit_parts()
    return {
        "train": functools.partial(records, *train),
        "validation": functools.partial(records, *validation),
    }


def _scenes() -> dict[str, Records]:
    """cityscapes: digits on a canvas of 64 x 64, and the id of each pixel.

    The rim of a digit, neither ink nor paper, is unscored.
    """

    # The classes of a scene are the first ones of Cityscapes; IGNORED, -1, is the last entry.
    ids = np.array([*(k for k, c in enumerate(CITYSCAPES.label_ids) if c != IGNORED), UNSCORED_ID])

    def records(part: Literal["train", "test"], count: int) -> Iterator[dict[str, Any]]:
        for index, scene in enumerate(draw_scenes(part, count)):
            yield {
                "image_id": f"digits_{index:06d}_000000",
                "image_left": _encoded(scene.image, "PNG"),
                "segmentation_label": _encoded(ids[scene.label].astype(np.uint8), "PNG"),
            }

    return {
        "train": functools.partial(records, "train", 256),
        "validation": functools.partial(records, "test", 64),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to write, and where."""

    name: tyro.conf.Positional[Name]
    """Name in the catalogue of tensorflow-datasets."""
    data_dir: Annotated[pathlib.Path, tyro.conf.arg(metavar="DIR")]
    """Folder that holds the sets."""


def run(arguments: Arguments) -> int:
    """Write it, say where."""
    print(f"wrote {prepare(arguments.name, arguments.data_dir)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("prepare_local", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
