"""Batches of images: what stands at a position depends on (seed, position) only."""

import threading
import time

import numpy as np
import pytest

from jdeq.data import (
    CIFAR10,
    Example,
    ImageBatches,
    OrderedImageBatches,
    PadCropFlip,
    ResizeCentreCrop,
    open_images,
    prefetched,
)


def toy(size=20):
    """Examples that can be told apart by their first pixel."""
    images = np.random.default_rng(0).integers(0, 256, (size, 6, 6, 3)).astype(np.uint8)
    images[:, 3, 3, 0] = np.arange(size)
    return [Example(image, np.asarray(i, np.int32)) for i, image in enumerate(images)]


def toy_batches(**options):
    options = {"batch_size": 6, "recipe": PadCropFlip(pad=1), "seed": 3, **options}
    return ImageBatches(source=toy(), images=CIFAR10, **options)


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_is_a_permutation_without_its_remainder():
    batches = toy_batches()
    assert batches.batches_per_epoch == 3
    epochs = [np.concatenate([batches(3 * e + p)[1] for p in range(3)]) for e in range(2)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 18
    assert list(epochs[0]) != list(epochs[1])
    np.testing.assert_array_equal(epochs[0][:6], batches.indices(0))


def test_a_position_is_the_same_from_anywhere():
    straight = [toy_batches()(p) for p in range(8)]
    for position in (7, 4, 5):  # any order, in the middle of an epoch
        assert_equal(toy_batches()(position), straight[position])
    assert not np.array_equal(toy_batches(seed=4)(0)[1], straight[0][1])


def test_augmentation_differs_between_epochs_but_not_with_the_batch_size():
    """It is seeded by (seed, epoch, example): who shares the batch does not matter."""

    def first_epoch(batches, epoch=0):
        parts = [batches(p + epoch * batches.batches_per_epoch) for p in range(4)]
        return {int(i): x for images, labels in parts for x, i in zip(images, labels, strict=True)}

    fives, again = first_epoch(toy_batches(batch_size=5)), first_epoch(toy_batches(batch_size=4))
    assert len(fives) == 20
    for index, image in again.items():
        np.testing.assert_array_equal(image, fives[index])
    later = first_epoch(toy_batches(batch_size=5), epoch=1)
    assert sum(not np.array_equal(later[i], fives[i]) for i in range(20)) > 12


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_shards_make_up_the_global_batch(num_shards):
    for position in (1, 4):
        parts = [
            toy_batches(shard=shard, num_shards=num_shards)(position) for shard in range(num_shards)
        ]
        whole = tuple(np.concatenate(leaf) for leaf in zip(*parts, strict=True))
        assert_equal(whole, toy_batches()(position))


def test_a_shard_reads_its_rows_only():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    source = Counting(toy())
    ImageBatches(source=source, images=CIFAR10, batch_size=6, shard=1, num_shards=3)(2)
    assert source.reads == 2


@pytest.mark.parametrize("num_shards", [1, 2])
def test_evaluation_meets_everything_once(num_shards):
    seen = []
    for shard in range(num_shards):
        batches = OrderedImageBatches(
            source=toy(21), images=CIFAR10, batch_size=8, shard=shard, num_shards=num_shards
        )
        assert len(batches) == 3
        for (_, labels), count in prefetched(batches, stop=len(batches)):
            assert len(labels) == 8 // num_shards
            seen += list(labels[:count])
            assert (labels[count:] == 20).all()
    assert sorted(seen) == list(range(21))


def test_evaluation_resizes():
    recipe = ResizeCentreCrop(resize=4, size=4)
    batches = OrderedImageBatches(source=toy(3), images=CIFAR10, batch_size=2, recipe=recipe)
    (images, _), count = batches(1)
    assert images.shape == (2, 4, 4, 3) and count == 1


def test_prefetching_changes_nothing(prepared):
    source = open_images(CIFAR10, "train", data_dir=prepared("cifar10"))
    batches = ImageBatches(source=source, images=CIFAR10, batch_size=500, recipe=PadCropFlip())
    ahead = prefetched(batches, start=1)  # has no end: two epochs of it are taken
    for position in (1, 2, 3, 4):
        assert_equal(next(ahead), batches(position))
    ahead.close()


def test_prefetching_works_ahead_and_ends_with_its_iterator():
    made, before = [], threading.active_count()
    ahead = prefetched(lambda position: made.append(position) or position, start=5, ahead=4)
    assert next(ahead) == 5
    deadline = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {5, 6, 7, 8} <= set(made) <= {5, 6, 7, 8, 9}  # nobody asked for them yet
    ahead.close()
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_an_error_comes_out_at_its_position():
    def batches(position):
        if position == 3:
            raise ValueError("example 17 is damaged")
        return position

    ahead = prefetched(batches, start=1)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="example 17 is damaged"):
        next(ahead)


BAD_BATCHES = [
    ({"batch_size": 21}, r"batch_size must be in 1\.\.20, the number of examples; got 21"),
    ({"batch_size": 0}, "batch_size must be a positive multiple of num_shards, 1; got 0"),
    ({"batch_size": 6, "num_shards": 4}, "multiple of num_shards, 4; got 6"),
    ({"shard": 2, "num_shards": 2}, r"shard must be in 0\.\.num_shards - 1; got shard 2 of 2"),
    ({"num_shards": 0}, "got shard 0 of 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD_BATCHES)
def test_bad_options_of_batches(options, message):
    with pytest.raises(ValueError, match=message):
        toy_batches(**options)
    with pytest.raises(ValueError, match="ahead must be >= 1; got 0"):
        next(prefetched(toy_batches(), ahead=0))
