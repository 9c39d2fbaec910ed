"""Adaptive embedding and softmax: against the formula, ties, losses without all the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.layers import AdaptiveEmbedding

NORMAL = jax.nn.initializers.normal(0.5)
LAYER = AdaptiveEmbedding(20, 8, (5, 9, 12), 2, weight_init=NORMAL)
TOKENS = jax.random.randint(jax.random.key(0), (3, 7), 0, 20)
H = jax.random.normal(jax.random.key(1), (3, 7, 8))


@functools.cache
def variables(layer=LAYER):
    """Biases too are not at their start."""
    return jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape),
        jax.jit(layer.init)(jax.random.key(2), TOKENS),
    )


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


def by_formula(p, h):
    """Log-probabilities for one h in float64, cluster by cluster."""
    p, h = jax.tree.map(lambda a: np.asarray(a, np.float64), (p, h))
    first = h @ p["head"]
    rows = p["clusters"] @ first + p["cluster_bias"]
    head = log_softmax(np.concatenate([p["table0"] @ first + p["bias0"], rows]))
    parts = [head[:5]]
    for c in (1, 2, 3):
        tail = log_softmax(p[f"table{c}"] @ (p[f"projection{c}"] @ h) + p[f"bias{c}"])
        parts.append(head[5 + c - 1] + tail)
    return np.concatenate(parts)


def test_log_probabilities_are_the_formula_and_sum_to_one():
    v = variables()
    got = jax.jit(functools.partial(LAYER.apply, method="log_probs"))(v, H)
    want = np.stack([[by_formula(v["params"], h) for h in row] for row in H])
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(np.exp(got).sum(-1), 1.0, rtol=1e-5)


def test_embeddings_are_the_formula():
    v = variables()
    p = v["params"]
    edges = [0, 5, 9, 12, 20]
    want = np.concatenate([p[f"table{c}"] @ p[f"projection{c}"] for c in range(4)]) * np.sqrt(8)
    assert [p[f"table{c}"].shape for c in range(4)] == [
        (edges[c + 1] - edges[c], 8 // 2**c) for c in range(4)
    ]
    np.testing.assert_allclose(LAYER.apply(v, jnp.arange(20)), want, atol=1e-5)
    assert np.isnan(LAYER.apply(v, jnp.array([20]))).all()


@pytest.mark.parametrize("cutoffs", [(), (12,)])
def test_divisor_one_shares_the_table_and_projects_nothing(cutoffs):
    layer = AdaptiveEmbedding(20, 8, cutoffs, weight_init=NORMAL)
    v = variables(layer)
    assert not any(name.startswith(("projection", "head")) for name in v["params"])
    got = layer.apply(v, H, method="log_probs")
    if not cutoffs:
        p = v["params"]
        np.testing.assert_allclose(
            got, jax.nn.log_softmax(H @ p["table0"].T + p["bias0"]), atol=1e-5
        )
    np.testing.assert_allclose(np.exp(got).sum(-1), 1.0, rtol=1e-5)


def test_it_factorises_the_full_softmax():
    """A cluster's logit that is the log-sum of its tokens' makes the two one distribution."""
    layer = AdaptiveEmbedding(20, 8, (12,), weight_init=NORMAL)
    p = dict(variables(layer)["params"])
    full = H @ jnp.concatenate([p["table0"], p["table1"]]).T
    p |= {name: jnp.zeros_like(p[name]) for name in ("bias0", "bias1", "cluster_bias")}
    run = jax.jit(functools.partial(layer.apply, method="log_probs"))
    for h, want in zip(H.reshape(-1, 8), jax.nn.log_softmax(full).reshape(-1, 20), strict=True):
        mass = jax.nn.logsumexp(p["table1"] @ h)
        p["clusters"] = (mass * h / (h @ h))[None]
        got = run({"params": p}, h)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_ties():
    """The later clusters' projections and all tables serve both; the first projection does not."""
    v = variables()

    def touched(f):
        grads = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(f(v)))))(v)["params"]
        return {name for name, grad in grads.items() if np.abs(grad).max() > 0}

    tables = {f"table{c}" for c in range(4)}
    later = {f"projection{c}" for c in (1, 2, 3)}
    biases = {f"bias{c}" for c in range(4)} | {"clusters", "cluster_bias"}
    assert touched(lambda v: LAYER.apply(v, jnp.arange(20))) == tables | later | {"projection0"}
    softmax = touched(lambda v: LAYER.apply(v, H, method="log_probs"))
    assert softmax == tables | later | biases | {"head"}


@pytest.mark.parametrize("block", [1, 4, 256])
def test_losses_are_those_of_the_log_probabilities(block):
    """And their gradients. Labels that are none cost nothing."""
    v, labels = variables(), TOKENS.at[0, :3].set(-1)

    def short(v, h):
        return LAYER.apply(v, h, labels, block=block, method="losses")

    def long(v, h):
        log_probs = LAYER.apply(v, h, method="log_probs")
        picked = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
        return jnp.where(labels < 0, 0.0, -picked)

    losses = jax.jit(short)(v, H)
    np.testing.assert_allclose(losses, jax.jit(long)(v, H), atol=1e-5)
    np.testing.assert_array_equal(losses[0, :3], 0.0)
    got, want = (
        jax.jit(jax.grad(lambda v, h, f=f: jnp.sum(jnp.sin(f(v, h))), argnums=(0, 1)))(v, H)
        for f in (short, long)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_labels_of_another_shape_are_refused():
    h = jnp.zeros((3, 7, 8))
    for labels in (jnp.zeros((3, 3), int), jnp.zeros((21,), int), jnp.zeros((7, 3), int)):
        with pytest.raises(ValueError, match=r"h must be \[\*labels.shape, 8\]; got \(3, 7, 8\)"):
            LAYER.apply(variables(), h, labels, method="losses")


def test_a_label_beyond_the_vocabulary_is_not_a_number():
    losses = LAYER.apply(variables(), H[0, :2], jnp.array([19, 20]), method="losses")
    assert np.isfinite(losses[0]) and np.isnan(losses[1])


def test_losses_need_a_fraction_of_the_memory(optimized):
    layer = AdaptiveEmbedding(20_000, 16, (500, 2000), 2, weight_init=NORMAL)
    h, labels = jnp.zeros((1024, 16)), jnp.zeros(1024, jnp.int32)
    v = jax.eval_shape(layer.init, jax.random.key(0), labels)

    def peak(f):
        compiled = jax.jit(jax.grad(f)).lower(v, h).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short = peak(lambda v, h: layer.apply(v, h, labels, block=64, method="losses").sum())
    long = peak(lambda v, h: layer.apply(v, h, method="log_probs")[:, 0].sum())
    assert 1024 * 20_000 * 4 <= long  # all log-probabilities
    assert short < long / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": (9, 5)}, r"cutoffs must increase between 0 and vocab_size=20, .*\(9, 5\)"),
        ({"cutoffs": (20,)}, r"cutoffs must increase between 0 and vocab_size=20, .*\(20,\)"),
        ({"divisor": 3}, r"width must be >= divisor\^len\(cutoffs\) = 27, .*; got 8"),
        ({"divisor": 0}, "divisor must be >= 1; got 0"),
    ],
)
def test_refused_options(options, message):
    layer = LAYER.clone(**options)
    with pytest.raises(ValueError, match=f"jdeq.layers.AdaptiveEmbedding: {message}"):
        jax.eval_shape(layer.init, jax.random.key(0), TOKENS)
