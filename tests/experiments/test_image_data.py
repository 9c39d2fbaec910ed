"""Image sets that are read on the way, on the stand-ins: what is trained on and what is scored."""

import dataclasses

import numpy as np
import pytest

from experiments.image_data import CityscapesData, ImageNetData, ScenesData
from jdeq.data import IGNORED, Dataset
from jdeq.training import evaluate
from jdeq.training.step import Evaluation


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


def test_cityscapes_is_cropped_to_train_on_and_scored_whole(prepared):
    folder = str(prepared("cityscapes"))
    data = CityscapesData(data_dir=folder, batch_size=2, height=32, width=48, held=2)
    task = data.build(0)
    assert task.batches(0).inputs.shape == (2, 32, 48, 3)
    assert task.batches(0).labels.shape == (2, 32, 48)
    assert task.test.labels.shape == (2, 64, 64) and task.labels_pixels
    assert task.quality == "mean_iou" and task.test_examples == 64
    with pytest.raises(ValueError, match=r"data.held must be in 1\.\.64; got 65"):
        dataclasses.replace(data, held=65).build(0)


def test_scenes():
    task = ScenesData(train_scenes=3, test_scenes=2, batch_size=2).build(0)
    assert task.batches(0).inputs.shape == (2, 64, 64, 3) and task.test_examples == 2
    assert set(np.unique(task.test.labels)) <= set(range(IGNORED, 11)) and task.classes == 11
    with pytest.raises(ValueError, match="load_scenes: train must be >= 1; got 0"):
        ScenesData(train_scenes=0).build(0)


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

    lazily = evaluate(step, {}, scored, batch_size=0, classes=19)
    held = Dataset(
        *(np.concatenate(leaves) for leaves in zip(scored(0)[0], scored(1)[0], strict=True))
    )
    held = Dataset(*(leaf[:7] for leaf in held))
    at_once = evaluate(step, {}, held, batch_size=5, classes=19)
    assert lazily == pytest.approx(at_once)
    assert 0 < lazily["mean_iou"] < lazily["accuracy"] < 1
