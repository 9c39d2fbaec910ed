"""Image sets: read from files of the real format, without network or TensorFlow."""

import dataclasses
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jdeq import data
from jdeq.data import (
    CIFAR10,
    CITYSCAPES,
    IGNORED,
    IMAGENET,
    MNIST,
    SVHN,
    Example,
    ImageBatches,
    ImageSource,
    ResizedCropFlip,
    ScaleCropFlip,
    open_images,
)

SMALL = [(CIFAR10, (32, 32, 3)), (SVHN, (32, 32, 3)), (MNIST, (28, 28, 1))]


@pytest.mark.parametrize(("images", "shape"), SMALL, ids=lambda v: getattr(v, "name", ""))
def test_small_sets(prepared, images, shape):
    train = open_images(images, "train", data_dir=prepared(images.name))
    test = list(open_images(images, "test", data_dir=prepared(images.name)))
    assert (len(train), len(test)) == (1437, 360)
    assert {example.image.shape for example in test} == {shape}
    assert {int(example.label) for example in test} == set(range(10))
    pixels, labels = images.normalise(test)
    assert pixels.dtype == np.float32 and labels.dtype == np.int32
    oracle = (test[5].image / 255 - np.array(images.mean)) / np.array(images.std)
    np.testing.assert_allclose(pixels[5], oracle, atol=1e-5)


def test_the_catalogue_reads_the_same(prepared):
    """The builder of the real set accepts the files, and decodes to the same pixels."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=prepared("cifar10"), file_format="array_record")
    theirs = builder.as_data_source("test")
    ours = open_images(CIFAR10, "test", data_dir=prepared("cifar10"))
    assert len(ours) == len(theirs)
    for index in (0, 17, 359):
        np.testing.assert_array_equal(ours[index].image, theirs[index]["image"])
        assert ours[index].label == theirs[index]["label"]


def test_parts_and_sums_of_splits(prepared):
    def read(split):
        return open_images(MNIST, split, data_dir=prepared("mnist"))

    assert len(read("train+test")) == 1797
    part, whole = read("train[100:110]"), read("train")
    assert len(part) == 10
    for one, two in zip(part[3], whole[103], strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(whole[-1].image, whole[1436].image)
    assert [example.label for example in whole[1:3]] == [whole[1].label, whole[2].label]
    with pytest.raises(IndexError, match="no example 1437"):
        whole[1437]


def test_photographs(prepared):
    """Of many sizes, and the grey ones among them have three channels."""
    source = open_images(IMAGENET, "validation", data_dir=prepared("imagenet2012"))
    examples = source[:60]
    assert {example.image.shape[-1] for example in examples} == {3}
    assert len({example.image.shape for example in examples}) > 50
    grey = [(e.image == e.image[..., :1]).all() for e in examples]
    assert 0 < sum(grey) < 15
    with pytest.raises(ValueError, match="must have one size; got .* of imagenet2012"):
        IMAGENET.normalise(examples)
    batches = ImageBatches(
        source=source, images=IMAGENET, batch_size=8, recipe=ResizedCropFlip(size=64)
    )
    assert batches(0)[0].shape == (8, 64, 64, 3)


def test_scenes(prepared):
    source = open_images(CITYSCAPES, "train", data_dir=prepared("cityscapes"))
    image, label = source[0]
    assert image.shape == (64, 64, 3) and label.shape == (64, 64)
    assert set(np.unique(label)) <= {IGNORED, *range(11)}  # digits are 0..9, the background 10
    assert IGNORED in label and 10 in label and len(np.unique(label)) >= 4
    # The paper is dark and the ink light, so the labels must follow the brightness.
    brightness = image.mean(-1)
    assert brightness[label == 10].max() < brightness[(label >= 0) & (label < 10)].min()
    batches = ImageBatches(
        source=source, images=CITYSCAPES, batch_size=4, recipe=ScaleCropFlip(height=32, width=64)
    )
    pixels, labels = batches(0)
    assert pixels.shape == (4, 32, 64, 3) and labels.shape == (4, 32, 64)
    assert labels.dtype == np.int32


def test_ids_of_cityscapes():
    """Spot checks of the benchmark's table: 7 road, 26 car, 33 bicycle; 0, 1, 18 unscored."""
    ids = CITYSCAPES.label_ids
    assert [ids[i] for i in (7, 8, 26, 33)] == [0, 1, 13, 18]
    assert [ids[i] for i in (0, 1, 18, 30)] == [IGNORED] * 4
    assert sorted(set(ids)) == [IGNORED, *range(19)]


def encoded(mode="RGB", file_format="PNG", size=(4, 4)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, file_format)
    return buffer.getvalue()


GREY = encoded("L")
BAD_RECORDS = [
    (CIFAR10, {"image": b"no image", "label": 0}, "cannot identify image file"),
    (CIFAR10, {"image": encoded(size=(99, 99))[:70], "label": 0}, "truncated"),
    (CIFAR10, {"image": encoded("RGBA"), "label": 0}, "must have 3 channels of 8 bits; got 4 of 8"),
    (CIFAR10, {"image": GREY, "label": 0}, "must have 3 channels of 8 bits; got 1 of 8"),
    (MNIST, {"image": encoded("I;16"), "label": 0}, "1 channels of 8 bits; got 1 of 16"),
    (IMAGENET, {"image": encoded("CMYK", "JPEG"), "label": 0}, "3 channels of 8 bits; got 4"),
    (CIFAR10, {"image": encoded(), "label": 10}, r"label must lie in 0\.\.9; got 10"),
    (IMAGENET, {"image": encoded(), "label": -1}, r"label must lie in 0\.\.999; got -1"),
]
BAD_SCENES = [
    (Image.new("L", (4, 4), 34), r"values must lie in 0\.\.33; got 34"),
    (Image.new("L", (4, 5), 7), r"label has size \(5, 4\), its image \(4, 4\)"),
]


@pytest.mark.parametrize(("images", "record", "message"), BAD_RECORDS)
def test_bad_records_are_named(images, record, message):
    source = ImageSource(images, "'train' of somewhere", [None, record])
    with pytest.raises(ValueError, match=rf"'train' of somewhere.*example 1: .*{message}"):
        source[1]


@pytest.mark.parametrize(("label", "message"), BAD_SCENES)
def test_bad_scenes_are_named(label, message):
    buffer = io.BytesIO()
    label.save(buffer, "PNG")
    record = {"image_left": encoded(), "segmentation_label": buffer.getvalue()}
    with pytest.raises(ValueError, match=rf"example 0: .*{message}"):
        ImageSource(CITYSCAPES, "'train'", [record])[0]


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy of the prepared mnist, to be damaged, and its folder."""
    folder = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(prepared("mnist") / "mnist" / "3.0.1", folder)
    return tmp_path, folder


def test_a_damaged_file_is_named(damaged):
    data_dir, folder = damaged
    (file,) = folder.glob("mnist-test*")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    file.write_bytes(content)
    source = open_images(MNIST, "test", data_dir=data_dir)
    messages = []
    for index in range(len(source)):
        try:
            source[index]
        except ValueError as error:
            messages.append(str(error))
    assert 1 <= len(messages) < 20  # the others are read
    assert all(str(folder) in message and "Corrupted" in message for message in messages)


def test_a_missing_file_is_named(damaged):
    data_dir, folder = damaged
    (file,) = folder.glob("mnist-test*")
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{file.name} is missing; remove (.|\n)*tfds build"
    ):
        open_images(MNIST, "test", data_dir=data_dir)
    assert len(open_images(MNIST, "train", data_dir=data_dir)) == 1437


def test_another_format_is_refused(damaged):
    data_dir, folder = damaged
    facts = folder / "dataset_info.json"
    facts.write_text(facts.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="must be array_record; they are tfrecord; remove"):
        open_images(MNIST, "test", data_dir=data_dir)


@pytest.mark.parametrize(
    "images", [CIFAR10, SVHN, MNIST, IMAGENET, CITYSCAPES], ids=lambda i: i.name
)
def test_a_missing_set_says_how_to_prepare_it(images, tmp_path):
    unfinished = tmp_path / images.name / images.config / "incomplete.AB12CD_3.0.2"
    unfinished.mkdir(parents=True)
    (unfinished / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError) as caught:
        open_images(images, "train", data_dir=tmp_path)
    message = str(caught.value)
    assert f"no {images.name} under {tmp_path}" in message
    assert f"--data_dir {tmp_path} --file_format array_record" in message
    assert f"python -m experiments.prepare_local {images.name} --data-dir {tmp_path}" in message


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", "split must be of train, test .*; got 'validation' of mnist"),
        ("train[", "got 'train\\['"),
        ("train[5:5]", r"split must hold examples; 'train\[5:5\]' is empty"),
    ],
)
def test_a_missing_split(prepared, split, message):
    with pytest.raises(ValueError, match=message):
        open_images(MNIST, split, data_dir=prepared("mnist"))


def test_neither_network_nor_tensorflow(prepared):
    """Any connection or look-up of a host ends the process; opening takes far under a second."""
    script = """
import os, socket, sys, time
def refused(*args, **kwargs):
    os.write(2, b"network was asked for")
    os._exit(9)
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
from jdeq import data
heavy = {"tensorflow_datasets", "grain", "array_record", "PIL", "sklearn"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import tensorflow_datasets
start = time.perf_counter()
source = data.open_images(data.CIFAR10, "train", data_dir=sys.argv[1])
assert time.perf_counter() - start < 2, time.perf_counter() - start
batches = data.ImageBatches(source=source, images=data.CIFAR10, batch_size=8)
next(data.prefetched(batches))
assert heavy - {"sklearn"} <= set(sys.modules)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(prepared("cifar10"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_sets_compare_and_can_be_changed():
    other = dataclasses.replace(CIFAR10, std=(0.2470, 0.2435, 0.2616))
    assert other != CIFAR10 and hash(CIFAR10) == hash(dataclasses.replace(CIFAR10))
    example = Example(np.full((1, 1, 3), 255, np.uint8), np.int32(0))
    pixels = other.normalise([example])[0]
    np.testing.assert_allclose(
        pixels[0, 0, 0], (1 - 0.4914, 1 - 0.4822, 1 - 0.4465) / np.array(other.std)
    )
    assert data.Dataset(*CIFAR10.normalise([example]))[1].shape == (1,)
