"""The modern decoder cell: its formula, and that it starts as a contraction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import (
    DECODER_DEQ_BYTES,
    DecoderCell,
    DecoderDEQConfig,
    DecoderDEQLM,
    DecoderInjection,
)


def test_parameter_count():
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    params = jax.eval_shape(DecoderDEQLM(DECODER_DEQ_BYTES).init, jax.random.key(0), tokens)
    d = 512
    assert sum(a.size for a in jax.tree.leaves(params)) == (
        2 * 256 * d + 4 * d * d + 3 * d * 2048 + 3 * d
    )


def test_the_cell_is_its_formula():
    """Against loops over positions and heads in float64; RoPE as a product of complex numbers."""
    cell = DecoderCell(heads=2, hidden=5)
    z, x = jax.random.normal(jax.random.key(2), (2, 2, 5, 8))
    variables = jax.tree.map(
        lambda a: a + jax.random.normal(jax.random.key(a.size), a.shape) / 2,
        jax.jit(cell.init)(jax.random.key(3), z, DecoderInjection(x, None)),
    )
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])

    def norm(a, name):
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]

    def turned(a):
        pairs = a[:, :2] + 1j * a[:, 2:]
        return pairs * np.exp(1j * np.arange(5)[:, None] * np.array([1.0, 1e-2]))

    got = jax.jit(cell.apply)(variables, z, DecoderInjection(x, None))
    for b in range(2):
        h = np.asarray(z[b], np.float64) + x[b]
        q, k, v = np.split(norm(h, "norm1") @ p["qkv"]["kernel"], 3, axis=-1)
        mixed = np.zeros((5, 8))
        for head in (slice(0, 4), slice(4, 8)):
            scores = (turned(q[:, head]) @ turned(k[:, head]).conj().T).real / 2.0
            for t in range(5):
                weights = np.exp(scores[t, : t + 1])
                mixed[t, head] = weights / weights.sum() @ v[: t + 1, head]
        h = h + mixed @ p["out"]["kernel"]
        gate, up = np.split(norm(h, "norm2") @ p["gate_up"]["kernel"], 2, axis=-1)
        h = h + (gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"]
        np.testing.assert_allclose(got[b], norm(h, "norm3"), atol=2e-5)


def test_it_starts_as_a_contraction():
    """Plain iteration, which needs one, converges at the start of training."""
    config = DecoderDEQConfig(vocab_size=50, width=64, heads=4, hidden=128)
    model = DecoderDEQLM(config, solver=jdeq.Picard(), rtol=1e-4, max_steps=40)
    tokens = jax.random.randint(jax.random.key(4), (2, 16), 0, 50)
    _, sol = jax.jit(model.apply)(jax.jit(model.init)(jax.random.key(5), tokens), tokens)
    assert np.all(sol.stats.status == jdeq.Status.CONVERGED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be >= 1; got 0"),
        ({"heads": 3}, r"width must be a multiple of 2 heads \(6\); got 512"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.DecoderDEQConfig: {message}"):
        dataclasses.replace(DECODER_DEQ_BYTES, **change)
