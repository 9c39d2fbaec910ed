"""Image sets that are read on the way, on the stand-ins: what is trained on and what is scored."""

import dataclasses

import numpy as np
import pytest

from experiments.image_data import CityscapesData, ImageNetData, ReadAhead, ScenesData
from jdeq.data import IGNORED, IMAGENET, Dataset, Example, ImageBatches
from jdeq.training import Evaluation, evaluate


def test_imagenet_is_read_on_the_way_and_all_of_it_scored(prepared):
    data = ImageNetData(data_dir=str(prepared("imagenet2012")), batch_size=4, side=32, held=3)
    task = data.build(0)
    assert task.test.inputs.shape == (3, 32, 32, 3) and task.classes == 1000
    assert task.test_examples == 360 and task.quality == "accuracy"
    batch = task.batches(0)
    assert batch.inputs.shape == (4, 32, 32, 3) and batch.inputs.dtype == np.float32
    again = data.build(0).batches
    for position in (2, 0, 1):  # whatever was read before
        for ours, theirs in zip(again(position), task.batches(position), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(data.build(1).batches(0).labels, batch.labels)
    assert task.data == data.build(1).data  # the same data, whatever their order
    assert task.data == dataclasses.replace(data, held=2).build(0).data
    assert task.data != dataclasses.replace(data, side=40).build(0).data
    with pytest.raises(ValueError, match="data.side must be >= 1; got 0"):
        dataclasses.replace(data, side=0).build(0)


def test_cityscapes_is_cropped_to_train_on_and_scored_whole(prepared):
    folder = str(prepared("cityscapes"))
    data = CityscapesData(data_dir=folder, batch_size=2, height=32, width=48, held=2)
    task = data.build(0)
    assert task.batches(0).inputs.shape == (2, 32, 48, 3)
    assert task.batches(0).labels.shape == (2, 32, 48)
    assert task.test.labels.shape == (2, 64, 64) and task.labels_pixels
    assert task.quality == "mean_iou" and task.test_examples == 64
    for name, value, rule in (
        ("held", 65, r"in 1\.\.64"),
        ("batch_size", 257, r"in 1\.\.256"),
        ("test_batch_size", 0, ">= 1"),
        ("height", 0, ">= 1"),
    ):
        with pytest.raises(ValueError, match=f"data.{name} must be {rule}; got {value}"):
            dataclasses.replace(data, **{name: value}).build(0)


def test_scenes():
    task = ScenesData(train_scenes=3, test_scenes=2, batch_size=2).build(0)
    assert task.batches(0).inputs.shape == (2, 64, 64, 3) and task.test_examples == 2
    assert set(np.unique(task.test.labels)) <= set(range(IGNORED, 11)) and task.classes == 11
    with pytest.raises(ValueError, match="data.train_scenes must be >= 1; got 0"):
        ScenesData(train_scenes=0).build(0)
    with pytest.raises(ValueError, match=r"data.batch_size must be in 1\.\.2; got 3"):
        ScenesData(train_scenes=2, batch_size=3).build(0)


class Source(list):
    """Examples that note which of them were read."""

    def __init__(self, count):
        super().__init__(
            Example(np.full((2, 2, 3), i, np.uint8), np.int32(i)) for i in range(count)
        )
        self.read, self.damaged = [], ()

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.damaged:
            raise ValueError(f"example {index} cannot be read")
        return super().__getitem__(index)


def test_an_isolated_batch_is_all_that_is_read():
    source = Source(40)
    batches = ReadAhead(ImageBatches(source=source, images=IMAGENET, batch_size=2))
    for position in (0, 5, 0):
        batches(position)
    assert len(source.read) == 6
    for position in (1, 2):
        want = batches.batches(position).labels
        np.testing.assert_array_equal(batches(position).labels, want)


def test_a_bad_record_is_an_error_each_time_and_those_after_it_are_read():
    source = Source(40)
    batches = ReadAhead(ImageBatches(source=source, images=IMAGENET, batch_size=2))
    source.damaged = (batches.batches.indices(2)[0],)
    for position in (0, 1):
        batches(position)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be read"):
            batches(2)
    assert len(batches(3).labels) == len(batches(4).labels) == 2


def test_what_is_scored_is_the_whole_of_it(prepared):
    """In batches that are read on the way as in memory; the last one is filled up."""
    data = CityscapesData(
        data_dir=str(prepared("cityscapes")), batch_size=2, height=32, width=32, test_batch_size=5
    )
    task = data.build(0)
    scored = dataclasses.replace(task.scored, source=task.scored.source[:7])

    def step(variables, batch):
        guess = (np.arange(64 * 64).reshape(64, 64) // 7 % 11) + 0 * batch.labels
        counted = batch.labels != IGNORED
        n = len(batch.labels)
        return Evaluation(
            loss_nats=batch.inputs[..., 0] * counted,
            correct=counted & (guess == batch.labels),
            counted=counted,
            predicted=guess,
            nfe=np.arange(n),
            residual=np.ones(n, np.float32),
            status=np.zeros(n, np.int32),
        )

    lazily = evaluate(step, {}, scored, classes=19)
    held = Dataset(
        *(np.concatenate(leaves) for leaves in zip(scored(0)[0], scored(1)[0], strict=True))
    )
    held = Dataset(*(leaf[:7] for leaf in held))
    at_once = evaluate(step, {}, held, batch_size=5, classes=19)
    assert lazily == pytest.approx(at_once)
    with pytest.raises(ValueError, match="batch_size must be None for batches with a size"):
        evaluate(step, {}, scored, batch_size=5)
    for size, message in ((None, "given for a Dataset"), (0, ">= 1; got 0")):
        with pytest.raises(ValueError, match=f"evaluate: batch_size must be {message}"):
            evaluate(step, {}, held, batch_size=size)

    def blind(variables, batch):
        return step(variables, batch)._replace(predicted=None)

    with pytest.raises(ValueError, match="classes must be None for a step without predictions"):
        evaluate(blind, {}, held, batch_size=5, classes=19)
    assert 0 < lazily["mean_iou"] < lazily["accuracy"] < 1
