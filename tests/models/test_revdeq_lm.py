"""The reversible language model: its block, causality to the bit, exact gradients, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import REVDEQ_WIKITEXT103, RevDEQLM, RevDEQLMCell, RevDEQLMConfig

TINY = RevDEQLMConfig(vocab_size=11, length=10, width=8, heads=2, expansion=3)
TOKENS = jax.random.randint(jax.random.key(0), (3, 9), 0, 11)


def variables_of(model):
    return jax.jit(model.init)(jax.random.key(1), TOKENS)


def test_parameter_count_of_the_published_configuration():
    """By hand: two embeddings of the vocabulary, the positions, a GPT-2 block, the last norm."""
    tokens = jax.ShapeDtypeStruct((2, 448), jnp.int32)
    shapes = jax.eval_shape(RevDEQLM(REVDEQ_WIKITEXT103).init, jax.random.key(0), tokens)
    d, block = 768, 12 * 768**2 + (3 + 1 + 4 + 1) * 768 + 2 * 2 * 768
    assert sum(a.size for a in jax.tree.leaves(shapes["params"])) == (
        2 * 50304 * d + 448 * d + block + 2 * d
    )


def test_the_cell_is_its_formula():
    """Against loops over positions and heads in float64."""
    cell = RevDEQLMCell(heads=2, expansion=3)
    z, x = jax.random.normal(jax.random.key(2), (2, 2, 5, 8))
    variables = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), a.shape) / 2,
        cell.init(jax.random.key(3), z, x),
    )
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    zs, xs = np.asarray(z, np.float64), np.asarray(x, np.float64)

    def norm(a, name):
        scaled = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)
        return scaled * p[name]["scale"] + p[name]["bias"]

    def dense(a, name):
        return a @ p[name]["kernel"] + p[name]["bias"]

    def gelu(a):
        return a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))

    for b in range(2):
        q, k, v = np.split(dense(norm(zs[b] + xs[b], "norm1"), "qkv"), 3, axis=-1)
        mixed = np.zeros((5, 8))
        for head in (slice(0, 4), slice(4, 8)):
            for t in range(5):
                scores = np.exp(k[: t + 1, head] @ q[t, head] / 2.0)
                mixed[t, head] = scores / scores.sum() @ v[: t + 1, head]
        h = zs[b] + dense(mixed, "out")
        want = h + dense(gelu(dense(norm(h, "norm2"), "up")), "down")
        np.testing.assert_allclose(cell.apply(variables, z, x)[b], want, atol=1e-5)


@pytest.mark.usefixtures("optimized")  # the program that users run
@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (jdeq.Reversible(beta=0.5), jdeq.ReversibleGradient()),
        (jdeq.Anderson(depth=3), jdeq.Implicit()),
    ],
)
@pytest.mark.parametrize("max_steps", [1, 4, 12])
def test_no_logit_depends_on_a_later_token(solver, gradient, max_steps):
    model = RevDEQLM(TINY, solver=solver, gradient=gradient, max_steps=max_steps)
    variables = variables_of(model)
    apply = jax.jit(model.apply)
    logits, sol = apply(variables, TOKENS)
    assert sol.stats.nfe.shape == TOKENS.shape
    changed, _ = apply(variables, TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 11))
    np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
    assert np.all(np.abs(logits[:, 5:] - changed[:, 5:]).max(-1) > 0)


@pytest.mark.parametrize("bad", [-1, 11])
def test_an_unknown_token_gives_nan_there_and_nothing_before(bad):
    model = RevDEQLM(TINY)
    variables = variables_of(model)
    apply = jax.jit(model.apply)
    logits, sol = apply(variables, TOKENS)
    broken, broken_sol = apply(variables, TOKENS.at[0, 5].set(bad))
    assert np.isnan(broken[0, 5]).all() and np.isfinite(np.delete(broken, 5, axis=1)).all()
    np.testing.assert_array_equal(broken[:, :5], logits[:, :5])
    np.testing.assert_array_equal(broken[1:], logits[1:])
    np.testing.assert_array_equal(broken_sol.stats.nfe[:, :5], sol.stats.nfe[:, :5])


@pytest.mark.parametrize("causal", [True, False])
def test_gradient_is_that_of_the_steps(causal):
    def grads(model, variables):
        def loss(variables):
            logits, sol = model.apply(variables, TOKENS)
            return jnp.sum(jnp.sin(logits)), sol

        return jax.grad(loss, has_aux=True)(variables)

    with jax.enable_x64(True):
        model = RevDEQLM(TINY, max_steps=5, causal=causal)
        variables = jax.tree.map(lambda a: 4 * a.astype(jnp.float64), variables_of(model))
        run = jax.jit(grads, static_argnums=0)
        got, sol = run(model, variables)
        want, _ = run(model.clone(gradient=jdeq.Unrolled()), variables)
        assert np.all(sol.stats.nfe == 11)  # five steps and the residual
        for path, leaf in jax.tree_util.tree_leaves_with_path(got):
            assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, want)


def test_bfloat16_computation():
    model = RevDEQLM(TINY, dtype=jnp.bfloat16, rtol=1e-2)
    logits, sol = jax.jit(model.apply)(variables_of(model), TOKENS)
    assert logits.dtype == jnp.float32 and sol.z.dtype == jnp.bfloat16
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be >= 1; got 0"),
        ({"heads": 3}, r"width must be a multiple of heads \(3\); got 8"),
        ({"length": 2.5}, "length must be an integer >= 1; got 2.5"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.RevDEQLMConfig: {message}"):
        dataclasses.replace(TINY, **change)


def test_tokens_that_do_not_fit_are_refused():
    def init(tokens):
        RevDEQLM(TINY).init(jax.random.key(0), tokens)

    with pytest.raises(ValueError, match="tokens must be integers .batch, length.; got float32"):
        init(jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match="at most config.length=10 a row; got 11"):
        init(jnp.zeros((2, 11), jnp.int32))
