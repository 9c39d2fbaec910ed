"""Windows and streams: which token stands where, from any position, on any shard."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdeq.data import IGNORED, ShuffledWindows, Streams, padded_batches, windows


def text(size):
    """Token i is i: what comes out says where it came from."""
    return np.arange(size, dtype=np.uint32)


@st.composite
def sizes(draw):
    length, batch_size = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    least = length * (batch_size + 1)
    return draw(st.integers(max(least, 2), least + 200)), length, batch_size


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_rows_of_streams_join_to_the_text(case):
    size, length, batch_size = case
    streams = Streams(tokens=text(size), length=length, batch_size=batch_size)
    parts = [streams(p) for p in range(streams.batches_per_epoch)]
    inputs = np.concatenate([inputs for inputs, _ in parts], axis=1)
    labels = np.concatenate([labels for _, labels in parts], axis=1)
    assert inputs.dtype == labels.dtype == np.int32
    assert inputs.shape[0] == batch_size
    np.testing.assert_array_equal(inputs.reshape(-1), np.arange(inputs.size))
    np.testing.assert_array_equal(labels, inputs + 1)
    assert size - 1 - inputs.size < batch_size * length


def test_streams_go_on_until_a_pass_starts():
    streams = Streams(tokens=text(61), length=5, batch_size=3)
    assert streams.batches_per_epoch == 4
    assert [p for p in range(9) if streams.starts(p)] == [0, 4, 8]
    for position in range(8):
        ended, begun = streams(position)[1][:, -1], streams(position + 1)[0][:, 0]
        assert np.array_equal(ended, begun) is not streams.starts(position + 1)
    np.testing.assert_array_equal(streams(1)[0], streams(5)[0])


@settings(max_examples=60, deadline=None)
@given(sizes(), st.integers(0, 5))
def test_an_epoch_of_windows_predicts_no_token_twice(case, epoch):
    size, length, batch_size = case
    batches = ShuffledWindows(tokens=text(size), length=length, batch_size=batch_size, seed=1)
    count = batches.batches_per_epoch
    parts = [batches(p) for p in range(epoch * count, (epoch + 1) * count)]
    inputs = np.concatenate([inputs for inputs, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    assert inputs.shape == (count * batch_size, length)
    assert inputs.dtype == labels.dtype == np.int32
    np.testing.assert_array_equal(labels, inputs + 1)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    assert len(np.unique(labels)) == labels.size
    assert len(np.unique(inputs[:, 0] % length)) == 1
    assert size - 1 - labels.size < (batch_size + 1) * length


def test_orders_and_boundaries_move_with_epoch_and_seed():
    def firsts(seed, epoch):
        batches = ShuffledWindows(tokens=text(5000), length=50, batch_size=7, seed=seed)
        per = batches.batches_per_epoch
        return np.concatenate([batches(p)[0][:, 0] for p in range(epoch * per, (epoch + 1) * per)])

    epochs = [firsts(0, e) for e in range(20)]
    assert len({int(first[0] % 50) for first in epochs}) > 10
    assert all(np.any(np.diff(first) < 0) for first in epochs)
    assert not np.array_equal(epochs[0], firsts(1, 0))


@pytest.mark.parametrize("kind", [ShuffledWindows, Streams])
def test_a_position_is_the_same_from_anywhere(kind):
    straight = kind(tokens=text(300), length=7, batch_size=4)
    seen = [straight(p) for p in range(25)]
    assert len(seen) > 2 * straight.batches_per_epoch
    resumed = kind(tokens=text(300), length=7, batch_size=4)
    for position in (24, 13, 14, 2):  # any order, in the middle of an epoch
        for one, two in zip(seen[position], resumed(position), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", [ShuffledWindows, Streams])
def test_shards_join_to_the_batch(kind):
    whole = kind(tokens=text(300), length=7, batch_size=6)
    shards = [
        kind(tokens=text(300), length=7, batch_size=6, shard=i, num_shards=3) for i in range(3)
    ]
    for position in (0, 3, 11):
        parts = [shard(position) for shard in shards]
        assert all(len(inputs) == 2 for inputs, _ in parts)
        for leaf, expected in enumerate(whole(position)):
            joined = np.concatenate([part[leaf] for part in parts])
            np.testing.assert_array_equal(joined, expected)


def test_memory_mapped_tokens_give_the_same(tmp_path):
    np.save(tmp_path / "ids.npy", text(300))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    for kind in (ShuffledWindows, Streams):
        one, two = (kind(tokens=t, length=7, batch_size=4)(3) for t in (text(300), mapped))
        np.testing.assert_array_equal(one[0], two[0])
        assert type(two[0]) is np.ndarray
    np.testing.assert_array_equal(windows(mapped, 7)[1], windows(text(300), 7)[1])


@pytest.mark.parametrize("kind", [ShuffledWindows, Streams])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"length": 0}, r"length must be >= 1; got 0"),
        ({"batch_size": 0}, r"batch_size must be a positive multiple of num_shards, 1; got 0"),
        ({"num_shards": 3}, r"batch_size must be a positive multiple of num_shards, 3; got 4"),
        ({"num_shards": 2, "shard": 2}, r"shard must be in 0\.\.num_shards - 1; got shard 2 of 2"),
        ({"tokens": text(30)}, r"tokens must be at least \d\d for one batch.*; got 30"),
        ({"tokens": text(300).reshape(2, 150)}, r"one axis; got shape \(2, 150\)"),
    ],
)
def test_out_of_range(kind, change, message):
    with pytest.raises(ValueError, match=rf"jdeq\.data\.{kind.__name__}: .*{message}"):
        kind(**({"tokens": text(300), "length": 8, "batch_size": 4} | change))


def test_the_fewest_tokens_make_one_batch():
    for kind, least in ((ShuffledWindows, 40), (Streams, 33)):
        assert kind(tokens=text(least), length=8, batch_size=4).batches_per_epoch == 1
        with pytest.raises(ValueError, match=f"at least {least}"):
            kind(tokens=text(least - 1), length=8, batch_size=4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 70))
def test_windows_predict_every_token_once(size, length):
    inputs, labels = windows(text(size), length)
    rows = math.ceil((size - 1) / length)
    assert inputs.shape == labels.shape == (rows, length)
    real = labels != IGNORED
    np.testing.assert_array_equal(labels[real], np.arange(1, size))
    np.testing.assert_array_equal(inputs[real] + 1, labels[real])
    assert not real[:-1].size or real[:-1].all()
    assert not inputs[~real].any()


def test_windows_go_through_padded_batches():
    data = windows(text(60), 7)
    kept = [batch[1][:count] for batch, count in padded_batches(data, batch_size=4)]
    np.testing.assert_array_equal(np.concatenate(kept), data[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((text(1), 3), "the number of tokens must be >= 2; got 1"),
        ((text(9), 0), "length must be >= 1; got 0"),
    ],
)
def test_windows_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"jdeq.data.windows: {message}"):
        windows(*arguments)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.data())
def test_sliding_windows_predict_every_token_once_after_enough_context(size, length, data):
    stride = data.draw(st.integers(1, length))
    inputs, labels = windows(text(size), length, stride=stride)
    real = labels != IGNORED
    np.testing.assert_array_equal(labels[real], np.arange(1, size))
    np.testing.assert_array_equal(inputs[real] + 1, labels[real])
    context = np.nonzero(real[1:])[1]
    assert np.all(context >= length - stride)


def test_a_stride_of_the_length_does_not_overlap():
    for got, want in zip(windows(text(50), 7, stride=7), windows(text(50), 7), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match=r"jdeq.data.windows: stride must be in 1\.\.7; got 8"):
        windows(text(50), 7, stride=8)
