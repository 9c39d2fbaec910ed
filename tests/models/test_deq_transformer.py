"""The Transformer-XL block and the models of it: formula, published sizes, dropout, losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.layers import Past, RelativeAttention, weight_norm
from jdeq.models import (
    DEQ_TRANSFORMER_WIKITEXT103,
    TRANSFORMER_XL_WIKITEXT103,
    DEQTransformerCell,
    DEQTransformerConfig,
    DEQTransformerLM,
    Injection,
    TransformerXL,
    TransformerXLConfig,
)

TINY = DEQTransformerConfig(vocab_size=11, width=8, heads=2, hidden=12, cutoffs=(4, 8), divisor=2)
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)


@pytest.mark.parametrize(
    ("model", "printed", "count"),
    [
        (DEQTransformerLM(DEQ_TRANSFORMER_WIKITEXT103), 98e6, 97_691_888),
        (TransformerXL(TRANSFORMER_XL_WIKITEXT103), 110e6, 110_333_813),
    ],
)
def test_parameter_counts_of_the_published_configurations(model, printed, count):
    tokens = jax.ShapeDtypeStruct((2, 150), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    total = sum(a.size for a in jax.tree.leaves(params))
    assert total == count and abs(total / printed - 1) < 0.02


def test_count_by_hand():
    """Vocabulary, injection, and a block whose every matrix has a gain for each output."""
    params = jax.eval_shape(
        DEQTransformerLM(DEQ_TRANSFORMER_WIKITEXT103).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 150), jnp.int32),
    )["params"]
    d, hidden, widths = 700, 48000, (700, 175, 43, 10)
    tables = sum(
        n * w for n, w in zip((20_000, 20_000, 160_000, 67_735), widths, strict=True)
    )  # fmt: skip
    vocabulary = tables + d * sum(widths) + d * d + 267_735 + 3 * (d + 1)
    attention = (3 + 1 + 1) * (d * d + d) + d + 2 * d
    feed_forward = 2 * d * hidden + 2 * hidden + 2 * d
    assert sum(a.size for a in jax.tree.leaves(params)) == (
        vocabulary + (d + 1) * 3 * d + attention + feed_forward
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_cell_is_its_formula(pre_norm):
    """With the attention of its own tests; everything else in float64 here."""
    config = dataclasses.replace(TINY, pre_norm=pre_norm)
    cell = DEQTransformerCell(config)

    def draw(i, *shape):
        return jax.random.normal(jax.random.key(i), shape)

    z, u, before_z, before_u = (
        draw(i, 2, *shape) for i, shape in enumerate(((5, 8), (5, 24), (3, 8), (3, 24)))
    )
    variables = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape),
        jax.jit(cell.init)(jax.random.key(5), z, Injection(u, None)),
    )
    keys, values = cell.apply(variables, before_z, before_u, method="keys_values")
    x = Injection(u, Past(keys, values, jnp.array([3, 1])))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"]["block"])

    def norm(a):
        a = np.asarray(a, np.float64)
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)

    def dense(a, name):
        direction = p[name]["direction"]
        w = p[name]["gain"] * direction / np.sqrt((direction**2).sum(0))
        return a @ w + p[name]["bias"]

    attention = functools.partial(
        RelativeAttention(2).apply, {"params": variables["params"]["block"]["attention"]}
    )
    h, before_h = (norm(a) if pre_norm else a for a in (z, before_z))
    known = attention(jnp.asarray(before_h, jnp.float32), before_u, method="keys_values")
    for got, want in zip((keys, values), known, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    attended = attention(jnp.asarray(h, jnp.float32), u, past=x.past)
    a = norm(attended + z)
    out = dense(np.maximum(dense(a, "up"), 0), "down") + a
    want = out if pre_norm else norm(out)
    np.testing.assert_allclose(jax.jit(cell.apply)(variables, z, x), want, atol=5e-5)
    np.testing.assert_array_equal(cell.initial_state(x), np.zeros((2, 5, 8)))


def test_deviations_of_the_weights():
    """0.01 and an effective 1 / sqrt(3 fan_in), 0.022 at the published width of 700."""
    config = DEQTransformerConfig(vocab_size=300, width=700, heads=10, hidden=64, divisor=4)
    params = jax.jit(DEQTransformerLM(config).init)(jax.random.key(1), TOKENS)["params"]
    block = params["cell"]["block"]
    matrices = {name: block["attention"][name] for name in ("qkv", "r", "out")}
    matrices |= {name: block[name] for name in ("up", "down")}
    for name, p in matrices.items():
        deviation = np.std(weight_norm(p["direction"], p["gain"]))
        want = 1 / np.sqrt(3 * (64 if name == "down" else 700))
        assert abs(deviation / want - 1) < 0.02, name  # 44,800 draws or more: 0.0033
        assert name == "down" or abs(want - 0.0218) < 1e-4
    embedding = params["embedding"]
    plain = [params["inject"]["kernel"], embedding["table0"], embedding["projection0"]]
    plain += [embedding["head"], block["attention"]["content_bias"]]
    for a in plain:
        assert abs(np.std(a) / 0.01 - 1) < (0.02 if a.size > 10_000 else 0.1)


def test_one_dropout_mask_a_call():
    """The map that is solved is one map: the solve converges far below what two masks differ by."""
    config = dataclasses.replace(TINY, dropout=0.3, attention_dropout=0.3)
    model = DEQTransformerLM(config, rtol=1e-5, max_steps=100)
    variables = jax.jit(model.init)(jax.random.key(2), TOKENS)
    # Stronger than the published injection, under which a map so small hardly contracts: by 30, one
    # position in three still needs more than 100 evaluations under one mask or another.
    variables["params"]["inject"]["kernel"] *= 300
    apply = jax.jit(lambda seed: model.apply(variables, TOKENS, rngs={"dropout": seed}))
    first, sol = apply(jax.random.key(3))
    assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
    np.testing.assert_array_equal(apply(jax.random.key(3))[0], first)
    other = apply(jax.random.key(4))[1].z
    assert np.abs(other - sol.z).max() > 0.1
    assert np.abs(jax.jit(model.apply)(variables, TOKENS)[1].z - sol.z).max() > 0.1


@pytest.mark.parametrize("layers", [None, 2])
def test_losses_in_place_of_log_probabilities(layers):
    fields = dataclasses.asdict(TINY)
    model = DEQTransformerLM(TINY)
    if layers:
        model = TransformerXL(TransformerXLConfig(**fields, layers=layers))
    variables = jax.jit(model.init)(jax.random.key(5), TOKENS)
    labels = jnp.roll(TOKENS, -1, axis=1).at[:, -1].set(-1)
    log_probs, _ = jax.jit(model.apply)(variables, TOKENS)
    losses, _ = jax.jit(model.apply)(variables, TOKENS, labels=labels)
    want = -jnp.take_along_axis(log_probs[:, :-1], labels[:, :-1, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses[:, :-1], want, atol=1e-5)
    np.testing.assert_array_equal(losses[:, -1], 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, r"width must be a multiple of heads \(3\); got 8"),
        ({"memory": -1}, "memory must be >= 0; got -1"),
        ({"hidden": 2.5}, "hidden must be an integer >= 1; got 2.5"),
        ({"layers": 0}, "layers must be >= 1; got 0"),
    ],
)
def test_refused_configurations(change, message):
    config = TransformerXLConfig(**dataclasses.asdict(TINY), layers=2)
    with pytest.raises(ValueError, match=f"jdeq.models.TransformerXLConfig: {message}"):
        dataclasses.replace(config, **change)


def test_without_weight_norm_the_matrices_are_plain_and_start_alike():
    """The same function of the same effective matrices, without the gains."""
    plain = dataclasses.replace(TINY, weight_norm=False)
    variables = DEQTransformerLM(TINY).init(jax.random.key(1), TOKENS)["params"]

    def merged(tree):
        if not isinstance(tree, dict):
            return tree
        if "gain" not in tree:
            return {name: merged(child) for name, child in tree.items()}
        rest = {name: leaf for name, leaf in tree.items() if name == "bias"}
        return {"kernel": weight_norm(tree["direction"], tree["gain"]), **rest}

    params = merged(variables)
    ours = DEQTransformerLM(plain).init(jax.random.key(1), TOKENS)["params"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    for model, values in ((TINY, variables), (plain, params)):
        model = DEQTransformerLM(model, solver=jdeq.Picard(), max_steps=3)
        logits, _ = model.apply({"params": values}, TOKENS)
        if model.config is TINY:
            expected = logits
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
