"""The pairs of the synthetic study: the curve, its noise, their standardisation."""

import numpy as np
import pytest

from jdeq.data import load_synthetic


def polynomial(x):
    """h by Horner's rule."""
    return ((1.5 * x + 1) * x - 5) * x - 3 + 2 * np.sin(x)


def test_labels_are_the_standardised_curve_and_a_little_noise():
    pairs = load_synthetic()
    assert len(pairs.train.labels) == 4096 and len(pairs.test.labels) == 1000
    for inputs, labels in (pairs.train, pairs.test):
        assert inputs.shape == (len(labels), 1) and inputs.dtype == labels.dtype == np.float32
        noise = pairs.mean + pairs.std * labels - polynomial(inputs[:, 0])
        assert abs(noise.mean()) < 0.005 and 0.047 < noise.std() < 0.053
        assert -1.5 <= inputs.min() < -1.45 and 1.45 < inputs.max() <= 1.5
        assert abs(inputs.mean()) < 0.1 and abs(inputs.std() - 1.5 / 3**0.5) < 0.03  # uniform
    assert abs(pairs.train.labels.mean()) < 1e-5 and abs(pairs.train.labels.std() - 1) < 1e-5
    x = np.array([-1.0, 0.0, 1.2])
    want = (polynomial(x) - pairs.mean) / pairs.std
    np.testing.assert_allclose(pairs.standardised_curve(x), want)


def test_the_same_at_every_call_and_no_pair_in_both_parts():
    one, again = load_synthetic(train=50, test=40), load_synthetic(train=50, test=40)
    for ours, theirs in zip((*one.train, *one.test), (*again.train, *again.test), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not set(one.train.inputs[:, 0]) & set(one.test.inputs[:, 0])
    assert np.abs(load_synthetic(half_width=3.0).train.inputs).max() > 2.9


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"train": 1}, "train must be >= 2; got 1"),
        ({"test": 0}, "test must be >= 1; got 0"),
        ({"half_width": 0.0}, "half_width must be > 0; got 0.0"),
    ],
)
def test_refused(options, rule):
    with pytest.raises(ValueError, match=f"jdeq.data.load_synthetic: {rule}"):
        load_synthetic(**options)
