"""Digit scenes: the same at every call, every pixel labelled as it is painted."""

import numpy as np
import pytest

from jdeq.data import CITYSCAPES, IGNORED, SCENES, load_scenes, open_images


def test_scenes_are_normalised_labelled_and_repeatable():
    scenes, again = load_scenes(train=6, test=2), load_scenes(train=6, test=2)
    for ours, theirs in zip(scenes, again, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    images, labels = scenes.train
    assert images.shape == (6, 64, 64, 3) and images.dtype == np.float32
    assert labels.shape == (6, 64, 64) and labels.dtype == np.int32
    assert abs(float(images.mean())) < 0.3 and 0.7 < float(images.std()) < 1.3
    assert len(np.unique(labels[(labels >= 0) & (labels < 10)])) > 5
    for image, label in zip(images, labels, strict=True):
        ink = image[(label >= 0) & (label < 10)].mean()
        rim, paper = image[label == IGNORED].mean(), image[label == 10].mean()
        assert paper < rim < ink
        for rows in (slice(32), slice(32, 64)):  # a digit in each quarter
            for columns in (slice(32), slice(32, 64)):
                inside = label[rows, columns]
                assert len(np.unique(inside[(inside >= 0) & (inside < 10)])) == 1


def test_more_scenes_begin_with_the_same_ones():
    few, more = load_scenes(train=2, test=2), load_scenes(train=4, test=3)
    for part, longer in zip(few, more, strict=True):
        for ours, theirs in zip(part, longer, strict=True):
            np.testing.assert_array_equal(ours, theirs[:2])


def test_parts_of_equal_size_share_no_colours():
    train, test = load_scenes(train=4, test=4)
    papers = [{image[0, 0].tobytes() for image in part.inputs} for part in (train, test)]
    assert len(papers[0]) == len(papers[1]) == 4 and not papers[0] & papers[1]


def test_the_stand_in_for_cityscapes_holds_the_same_scenes(prepared):
    """Its 64 validation images, whose digits are those of the test part."""
    source = open_images(CITYSCAPES, "validation", data_dir=prepared("cityscapes"))
    images, labels = SCENES.normalise(list(source))
    found = load_scenes(train=1, test=64).test
    ours = {label.tobytes(): image for image, label in zip(*found, strict=True)}
    assert len(images) == len(ours) == 64
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(ours[label.tobytes()], image)


@pytest.mark.parametrize("counts", [{"train": 0}, {"test": -1}])
def test_at_least_one_scene(counts):
    with pytest.raises(ValueError, match=f"load_scenes: {next(iter(counts))} must be >= 1"):
        load_scenes(**counts)
