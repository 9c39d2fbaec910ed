"""The LSTM baseline: the recurrence by hand, its statistics, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import LSTM, LSTMConfig

TINY = LSTMConfig(vocab_size=5, hidden=3, embed_width=2)
TOKENS = jax.random.randint(jax.random.key(0), (2, 6), 0, 5)


def test_it_is_the_recurrence():
    variables = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), a.shape),
        LSTM(TINY).init(jax.random.key(0), TOKENS),
    )
    logits, solution = LSTM(TINY).apply(variables, TOKENS)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    cell = p["recurrence"]["OptimizedLSTMCell_0"] if "recurrence" in p else p["OptimizedLSTMCell_0"]
    x = p["token"]["embedding"][np.asarray(TOKENS)]
    h = c = np.zeros((2, 3))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    for t in range(6):
        gate = {
            k: x[:, t] @ cell[f"i{k}"]["kernel"]
            + h @ cell[f"h{k}"]["kernel"]
            + cell[f"h{k}"]["bias"]
            for k in "ifgo"
        }
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        np.testing.assert_allclose(solution.z[:, t], h, atol=1e-5)
        want = h @ p["head"]["kernel"] + p["head"]["bias"]
        np.testing.assert_allclose(logits[:, t], want, atol=1e-5)
    jdeq.check(solution)
    np.testing.assert_array_equal(solution.stats.nfe, [1, 1])


def test_double_precision():
    with jax.enable_x64(True):
        variables = LSTM(TINY).init(jax.random.key(0), TOKENS)
        short, _ = LSTM(TINY).apply(variables, TOKENS)
        double = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
        logits, _ = LSTM(TINY).apply(double, TOKENS)
    assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, short, atol=1e-5)


def test_refused():
    with pytest.raises(ValueError, match="jdeq.models.LSTMConfig: hidden must be >= 1; got 0"):
        LSTMConfig(vocab_size=5, hidden=0, embed_width=2)
    with pytest.raises(ValueError, match="jdeq.models.LSTM: tokens must be integers"):
        LSTM(TINY).init(jax.random.key(0), jnp.zeros((2, 6)))


def test_an_unknown_token_gives_nan_there_only():
    model = LSTM(TINY)
    variables = model.init(jax.random.key(0), TOKENS)
    logits, _ = model.apply(variables, TOKENS.at[0, 2].set(5))
    assert np.isnan(logits[0, 2]).all() and np.isfinite(np.delete(logits, 2, axis=1)).all()
