"""The copy memory task: its layout, its answers, its errors."""

import numpy as np
import pytest

from jdeq.data import IGNORED, copy_memory


@pytest.mark.parametrize("length", [1, 5, 50])
def test_symbols_blanks_delimiters(length):
    inputs, labels = copy_memory(40, length, 3)
    assert inputs.shape == labels.shape == (40, length + 20)
    assert inputs.dtype == labels.dtype == np.int32
    symbols = inputs[:, :10]
    assert set(np.unique(symbols)) == set(range(1, 9))
    assert np.all(inputs[:, 10 : length + 9] == 0)
    assert np.all(inputs[:, length + 9 :] == 9)
    assert np.all(labels[:, : length + 10] == 0)
    np.testing.assert_array_equal(labels[:, length + 10 :], symbols)
    assert not np.any(labels == IGNORED)


def test_the_seed_decides():
    one, again, other = (copy_memory(8, 4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.inputs, again.inputs)
    assert np.any(one.inputs != other.inputs)


@pytest.mark.parametrize(("name", "arguments"), [("examples", (0, 5, 0)), ("length", (5, 0, 0))])
def test_refused(name, arguments):
    with pytest.raises(ValueError, match=f"jdeq.data.copy_memory: {name} must be >= 1; got 0"):
        copy_memory(*arguments)
