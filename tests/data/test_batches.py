"""Batches: what stands at a position depends on (seed, position) only."""

import numpy as np
import pytest

from jdeq.data import Dataset, ShuffledBatches, load_digits, padded_batches, random_shift


def toy(size=10):
    images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1) * np.ones((1, 3, 3, 1), "f4")
    return Dataset(images, np.arange(size, dtype=np.int32))


def test_an_epoch_is_a_permutation_without_repeats():
    batches = ShuffledBatches(data=toy(10), batch_size=5, seed=3)
    first = np.concatenate([batches.indices(p) for p in (0, 1)])
    second = np.concatenate([batches.indices(p) for p in (2, 3)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


def test_the_remainder_is_left_out():
    batches = ShuffledBatches(data=toy(10), batch_size=4)
    assert batches.batches_per_epoch == 2
    assert len({i for p in (0, 1) for i in batches.indices(p)}) == 8


def test_a_position_is_the_same_from_anywhere():
    straight = ShuffledBatches(data=toy(), batch_size=3, seed=1, max_shift=1)
    seen = [straight(p) for p in range(8)]
    resumed = ShuffledBatches(data=toy(), batch_size=3, seed=1, max_shift=1)
    for position in (7, 4, 5):  # any order, in the middle of an epoch
        for one, two in zip(seen[position], resumed(position), strict=True):
            np.testing.assert_array_equal(one, two)


def test_seeds_differ():
    orders = [ShuffledBatches(data=toy(64), batch_size=64, seed=s).indices(0) for s in (0, 1)]
    assert list(orders[0]) != list(orders[1])


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_size_out_of_range(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size must be in 1\.\.10.*got {batch_size}"):
        ShuffledBatches(data=toy(10), batch_size=batch_size)


def test_shift_moves_whole_images_and_fills_with_background():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 4, 4, 1))
    shifted = random_shift(images, max_shift=1, background=9.0, rng=rng)
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=9.0)
    windows = [
        padded[:, y : y + 4, x : x + 4] for y in range(3) for x in range(3)
    ]  # every possible result
    hits = np.array([(w == shifted).all(axis=(1, 2, 3)) for w in windows])
    assert hits.any(axis=0).all()
    assert hits.any(axis=1).all()  # each of the nine shifts occurs


def test_padded_batches_cover_everything_once():
    parts = list(padded_batches(toy(10), batch_size=4))
    assert [count for _, count in parts] == [4, 4, 2]
    assert all(len(batch.labels) == 4 for batch, _ in parts)
    kept = np.concatenate([batch.labels[:count] for batch, count in parts])
    assert list(kept) == list(range(10))


def test_digits_split():
    digits, again = load_digits(), load_digits()
    assert digits.train.inputs.shape == (1437, 8, 8, 1)
    assert digits.test.inputs.shape == (360, 8, 8, 1)
    np.testing.assert_array_equal(digits.test.inputs, again.test.inputs)
    pixels = digits.train.inputs
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [0.0, 1.0], atol=1e-5)
    assert pixels.min() == pytest.approx(digits.background)
    shares = [np.bincount(part.labels) / len(part.labels) for part in digits[:2]]
    np.testing.assert_allclose(*shares, atol=0.003)  # stratified: within one image of 360
    different = load_digits(seed=1)
    assert not np.array_equal(digits.test.inputs, different.test.inputs)


def test_digits_fraction_out_of_range():
    with pytest.raises(ValueError, match=r"test_fraction must lie in \(0, 1\); got 1"):
        load_digits(test_fraction=1.0)
