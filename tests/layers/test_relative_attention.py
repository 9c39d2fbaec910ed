"""Relative attention: against loops, causal to the bit, memory slots, dropout of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.layers import Past, RelativeAttention, relative_shift, sinusoids, weight_norm

BATCH, MEMORY, LENGTH, WIDTH, HEADS = 2, 3, 5, 6, 2
KEYS = MEMORY + LENGTH
LAYER = RelativeAttention(HEADS)
H = jax.random.normal(jax.random.key(0), (BATCH, KEYS, WIDTH))
U = jax.random.normal(jax.random.key(1), (BATCH, KEYS, 3 * WIDTH))


@functools.cache
def variables():
    """Every parameter different from its start."""
    params = jax.jit(LAYER.init)(jax.random.key(2), H, U)
    return jax.tree.map(
        lambda a: a + 0.5 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )


def attend(v, h, u, *, filled=None, layer=LAYER, rngs=None):
    """From the positions after the memory, whose keys and values come from the layer itself."""
    k, v_ = layer.apply(v, h[:, :MEMORY], u[:, :MEMORY], method="keys_values")
    past = Past(k, v_, filled)
    return layer.apply(v, h[:, MEMORY:], u[:, MEMORY:], past=past, rngs=rngs)


def by_loops(params, h, u, filled):
    """Dai et al. (2019), section 3.3, position by position in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def matrix(name):
        direction = p[name]["direction"]
        return p[name]["gain"] * direction / np.sqrt((direction**2).sum(0))

    depth = WIDTH // HEADS
    rates = 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    out = np.zeros((BATCH, LENGTH, WIDTH))
    for b in range(BATCH):
        q, k, v = np.split(np.asarray(h[b], np.float64) @ matrix("qkv") + u[b], 3, axis=-1)
        for i in range(MEMORY, KEYS):
            mixed = np.zeros(WIDTH)
            for head in range(HEADS):
                part = slice(head * depth, (head + 1) * depth)
                scores = []
                for j in range(MEMORY - filled[b], i + 1):
                    r = np.concatenate([np.sin(rates * (i - j)), np.cos(rates * (i - j))])
                    content = (q[i, part] + p["content_bias"][head]) @ k[j, part]
                    position = (q[i, part] + p["position_bias"][head]) @ (r @ matrix("r"))[part]
                    scores.append((content + position) / np.sqrt(depth))
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed[part] = weights @ v[MEMORY - filled[b] : i + 1, part]
            out[b, i - MEMORY] = mixed @ matrix("out") + p["out"]["bias"]
    return out


@pytest.mark.parametrize("filled", [(3, 3), (0, 2)])
def test_equals_loops(filled):
    v = variables()
    got = jax.jit(lambda v, n: attend(v, H, U, filled=n))(v, jnp.array(filled))
    np.testing.assert_allclose(got, by_loops(v["params"], H, U, filled), atol=2e-5)


def test_without_memory_and_injection():
    v = variables()
    want = LAYER.apply(v, H, jnp.zeros_like(U))
    np.testing.assert_array_equal(LAYER.apply(v, H), want)


def test_shift_by_hand():
    """The columns of three keys are the distances 2, 1, 0; two queries, at the keys 1 and 2."""
    shifted = relative_shift(jnp.array([[12, 11, 10], [22, 21, 20]]))
    np.testing.assert_array_equal(shifted[0, :2], [11, 10])
    np.testing.assert_array_equal(shifted[1], [22, 21, 20])


@pytest.mark.parametrize("width", [4, 5])
def test_sinusoids_of_distances(width):
    r = sinusoids(3, width)
    assert r.shape == (3, width)
    np.testing.assert_allclose(r[2], [0, 0, 1, 1] if width == 4 else [0, 0, 0, 1, 1])
    np.testing.assert_allclose(r[0, 0], np.sin(2.0), rtol=1e-6)


def test_an_empty_slot_is_no_key():
    """What stands in it changes nothing, to the bit; what stands in a filled one does."""
    v, filled = variables(), jnp.array([1, 1])
    run = jax.jit(lambda h: attend(v, h, U, filled=filled))
    np.testing.assert_array_equal(run(H.at[:, :2].add(7.0)), run(H))
    assert not np.array_equal(run(H.at[:, 2].add(7.0)), run(H))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_no_output_sees_a_later_position(rate):
    v = variables()
    layer = RelativeAttention(HEADS, dropout=rate, position_dropout=rate)
    rngs = {"dropout": jax.random.key(3)}
    run = jax.jit(lambda h, u: attend(v, h, u, layer=layer, rngs=rngs))
    before = run(H, U)
    for t in range(LENGTH - 1):
        later = slice(MEMORY + t + 1, None)
        after = run(H.at[:, later].mul(-3.0), U.at[:, later].add(5.0))
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        assert not np.array_equal(after[:, t + 1 :], before[:, t + 1 :])


def test_dropout_of_weights_takes_single_keys():
    """One query and one key, whose weight is 1: the value comes doubled or not at all."""
    layer = RelativeAttention(1, dropout=0.5)
    h = jnp.broadcast_to(H[:1, :1], (64, 1, WIDTH))
    v = jax.jit(layer.init)(jax.random.key(4), h)
    bias, plain = v["params"]["out"]["bias"], layer.apply(v, h)
    dropped = layer.apply(v, h, rngs={"dropout": jax.random.key(5)}) - bias
    out = np.isclose(dropped, 0, atol=1e-6).all((1, 2))
    twice = np.isclose(dropped, 2 * (plain - bias), atol=1e-5).all((1, 2))
    assert np.all(out ^ twice) and 10 < out.sum() < 54


def test_effective_matrices_have_the_distribution_asked_for():
    init = jax.nn.initializers.normal(0.3)
    layer = RelativeAttention(2, kernel_init=init)
    params = jax.jit(layer.init)(jax.random.key(6), jnp.zeros((1, 2, 64)))["params"]
    for name in ("qkv", "r", "out"):
        w = weight_norm(params[name]["direction"], params[name]["gain"])
        # 4096 or more draws: the relative standard error of the deviation is at most 0.011.
        assert abs(np.std(w) / 0.3 - 1) < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": jnp.zeros((2, 5, 7))}, r"multiple of heads \(2\); got shape \(2, 5, 7\)"),
        ({"u": U[:, 1:]}, r"u must have the shape \(2, 8, 18\); got \(2, 7, 18\)"),
    ],
)
def test_refused_inputs(options, message):
    options = {"h": H, "u": U} | options
    with pytest.raises(ValueError, match=f"jdeq.layers.RelativeAttention: .*{message}"):
        jax.eval_shape(lambda: LAYER.init(jax.random.key(0), **options))
