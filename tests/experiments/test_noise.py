"""The noise of a batch's gradient, estimated from batches."""

import numpy as np
import pytest

from experiments.noise import noise_and_signal


def test_noise_and_signal_of_gradients_whose_distribution_is_known():
    """Deviations of length 3 in 1000 dimensions from a mean of length 2, six batches at a time."""
    rng = np.random.default_rng(0)
    mean = np.zeros(1000)
    mean[0] = 2.0
    found = [
        noise_and_signal(mean + 3.0 / 1000**0.5 * rng.standard_normal((6, 1000)))
        for _ in range(200)
    ]
    noise, signal = np.mean(np.square(found), axis=0) ** 0.5
    assert noise == pytest.approx(3.0, rel=0.02) and signal == pytest.approx(2.0, rel=0.02)


def test_no_signal_is_none():
    rng = np.random.default_rng(1)
    signals = [noise_and_signal(rng.standard_normal((6, 1000)))[1] for _ in range(50)]
    noise = 1000**0.5
    assert np.median(signals) <= 0.1 * noise and min(signals) == 0.0
