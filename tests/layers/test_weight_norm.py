"""Weight-normalised layers: the effective weight is the one asked for, and the gain is its norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.layers import WeightNormConv, WeightNormDense, weight_norm

LAYERS = {
    "dense": (WeightNormDense(7), nn.Dense(7), (5, 6)),
    "conv": (WeightNormConv(7, (3, 3)), nn.Conv(7, (3, 3)), (5, 8, 8, 6)),
    "strided": (
        WeightNormConv(7, (3, 3), strides=2, padding=((1, 1), (1, 1))),
        nn.Conv(7, (3, 3), strides=2, padding=1),
        (5, 8, 8, 6),
    ),
    "one axis": (
        WeightNormConv(7, (2,), padding=((1, 0),)),
        nn.Conv(7, (2,), padding="CAUSAL"),
        (5, 9, 6),
    ),
    "no bias": (WeightNormDense(7, use_bias=False), nn.Dense(7, use_bias=False), (5, 4, 6)),
}


def effective(params):
    return weight_norm(params["direction"], params["gain"])


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_flax_layer_with_the_effective_weight(name):
    layer, plain, shape = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    params = layer.init(jax.random.key(1), x)["params"]
    params["gain"] = params["gain"] * jnp.linspace(0.5, 2.0, 7)
    if "bias" in params:
        params["bias"] = jnp.arange(7.0)
    plain_params = {"kernel": effective(params)}
    if "bias" in params:
        plain_params["bias"] = params["bias"]
    expected = plain.apply({"params": plain_params}, x)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("std", [0.01, 1.0])
@pytest.mark.parametrize("make", [WeightNormDense, lambda n, **k: WeightNormConv(n, (3, 3), **k)])
def test_initial_effective_weight_has_the_asked_for_distribution(make, std):
    layer = make(64, kernel_init=nn.initializers.normal(std))
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    w = np.asarray(effective(params))
    # 64 x 32 draws at least: the standard error of the deviation is 1.6% of it.
    assert abs(w.std() / std - 1) < 0.05
    np.testing.assert_allclose(w, params["direction"], rtol=1e-6)
    np.testing.assert_allclose(params["gain"], np.linalg.norm(w.reshape(-1, 64), axis=0), rtol=1e-5)


def test_effective_weight_ignores_the_scale_of_the_direction():
    v, g = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(weight_norm(10 * v, g), weight_norm(v, g), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(weight_norm(v, g), axis=0), jnp.abs(g), rtol=1e-6)


def test_gradient_reaches_every_parameter_and_is_orthogonal_to_the_direction():
    layer, _, shape = LAYERS["conv"]
    x = jax.random.normal(jax.random.key(0), shape)
    params = layer.init(jax.random.key(1), x)["params"]
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(layer.apply({"params": p}, x))))(params)
    assert all(float(jnp.linalg.norm(g)) > 1e-3 for g in jax.tree.leaves(grads))
    inner = jnp.sum(grads["direction"] * params["direction"], axis=(0, 1, 2))
    np.testing.assert_allclose(inner, 0.0, atol=1e-3)


def test_compute_dtype():
    layer = WeightNormConv(4, (3, 3), dtype=jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
    assert y.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))


def test_wrong_number_of_axes():
    with pytest.raises(ValueError, match=r"a kernel of 2 spatial axes.*\(4, 8, 3\)"):
        WeightNormConv(4, (3, 3)).init(jax.random.key(0), jnp.zeros((4, 8, 3)))


def test_drop_connect_takes_single_weights_for_all_positions():
    """Identity rows read the weight: an entry is doubled or 0, and the same wherever it is used."""
    layer = WeightNormDense(40, use_bias=False, drop_connect=0.5)
    x = jnp.eye(30)
    variables = layer.init(jax.random.key(0), x)
    w = layer.apply(variables, x)
    rngs = {"dropout": jax.random.key(1)}
    dropped = layer.apply(variables, jnp.stack([x, 3 * x]), rngs=rngs)
    np.testing.assert_allclose(dropped[1], 3 * dropped[0], rtol=1e-6)
    out = np.asarray(dropped[0] == 0)
    np.testing.assert_allclose(dropped[0][~out], 2 * w[~out], rtol=1e-5)
    assert 0.45 < out.mean() < 0.55 and np.ptp(out.mean(0)) > 0 and np.ptp(out.mean(1)) > 0
