"""Variational dropout: one mask per set of rngs, on exactly when a 'dropout' rng is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.layers import VariationalDropout

X = 1.0 + jax.random.uniform(jax.random.key(0), (16, 4, 4, 32))


def drop(layer, x, seed):
    return layer.apply({}, x, rngs={"dropout": jax.random.key(seed)})


def test_off_without_the_rng_and_at_rate_zero():
    np.testing.assert_array_equal(VariationalDropout(0.5).apply({}, X), X)
    np.testing.assert_array_equal(drop(VariationalDropout(0.0), X, 1), X)


def test_same_mask_at_every_evaluation_another_with_another_key():
    layer = VariationalDropout(0.5)
    first = drop(layer, X, 1)
    again = jax.jit(lambda x: drop(layer, x, 1))(2 * X)
    np.testing.assert_allclose(again, 2 * first, rtol=1e-6)
    assert not np.array_equal(first == 0, drop(layer, X, 2) == 0)


def test_same_mask_in_the_backward_pass():
    layer = VariationalDropout(0.5)
    grad = jax.grad(lambda x: drop(layer, x, 1).sum())(X)
    np.testing.assert_array_equal(grad, jnp.where(drop(layer, X, 1) == 0, 0.0, 2.0))


def test_broadcast_dims_drop_whole_channels():
    for axes in ((1, 2), (-3, -2)):
        mask = np.asarray(drop(VariationalDropout(0.5, broadcast_dims=axes), X, 1) == 0)
        assert np.array_equal(mask.all((1, 2)), mask.any((1, 2)))
        assert 0.3 < mask.mean() < 0.7


def test_keeps_the_mean_and_the_dtype():
    y = drop(VariationalDropout(0.3), jnp.ones((200, 500), jnp.bfloat16), 1)
    assert y.dtype == jnp.bfloat16
    # 100,000 draws: the standard error of the mean is 0.002; bfloat16 adds 0.002 to 1 / 0.7.
    assert abs(float(jnp.mean(y, dtype=jnp.float32)) - 1) < 0.01


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=r"VariationalDropout: rate must lie in \[0, 1\); got"):
        VariationalDropout(rate)


def test_broadcast_dims_out_of_range():
    with pytest.raises(ValueError, match="broadcast_dims must be axes of the input; got"):
        VariationalDropout(0.5, broadcast_dims=(4,)).apply({}, X)
