"""DEQ-ViT: shapes, convergence, options of training, permutation of patches, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.data import Dataset
from jdeq.models import DEQViT, DEQViTCell, DEQViTConfig
from jdeq.training import cross_entropy_loss

TINY = DEQViTConfig(image_side=8, patch=4, width=8, heads=2, hidden=12, num_classes=3)
IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
LABELS = np.array([0, 1, 2], np.int32)


@functools.cache
def variables_of(config=TINY):
    return jax.jit(DEQViT(config, max_steps=1).init)(jax.random.key(1), IMAGES)


def test_it_converges_at_its_initialisation_by_plain_iteration():
    model = DEQViT(TINY, solver=jdeq.Picard(), rtol=1e-4, max_steps=60)
    logits, sol = jax.jit(model.apply)(variables_of(), IMAGES)
    assert logits.shape == (3, 3) and sol.z.shape == (3, 4, 8)
    assert (np.asarray(sol.stats.status) == jdeq.Status.CONVERGED).all(), sol.stats
    assert np.ptp(np.asarray(logits), axis=0).min() > 1e-3


def test_the_cell_knows_patches_by_their_injection_only():
    """Attention and the rest are equivariant under a permutation of the patches."""
    cell = DEQViTCell(TINY)
    z, x = jax.random.normal(jax.random.key(2), (2, 1, 5, 8))
    f = jax.jit(cell.apply)
    variables = jax.jit(cell.init)(jax.random.key(3), z, x)
    order = np.array([3, 0, 4, 2, 1])
    out = f(variables, z, x)
    np.testing.assert_allclose(f(variables, z[:, order], x[:, order]), out[:, order], atol=1e-5)
    other = f(variables, z.at[:, 0].multiply(2.0), x)
    assert np.abs(other - out).max(axis=(0, 2)).min() > 1e-4  # every patch sees every other


HALF = {"solver": jdeq.Picard(), "gradient": jdeq.OneStep(), "dtype": jnp.bfloat16, "rtol": 1e-2}
PRETRAINING = {"solver": jdeq.Picard(), "gradient": jdeq.Unrolled()}


@pytest.mark.parametrize(
    ("options", "penalize"),
    [
        (HALF, False),
        pytest.param(PRETRAINING, True, marks=pytest.mark.slow),
        pytest.param({}, True, marks=pytest.mark.slow),
    ],
    ids=["bfloat16", "pretraining", "implicit"],
)
def test_trained_with_dropout(options, penalize):
    model = DEQViT(dataclasses.replace(TINY, dropout=0.2), max_steps=3, **options)
    loss = cross_entropy_loss(model, probe_backward=model.gradient.has_probe)

    @jax.jit
    def grads(params):
        def objective(params):
            out = loss(
                params,
                {},
                Dataset(IMAGES, LABELS),
                key=jax.random.key(4),
                probe=jdeq.backward_probe(),
                penalize=penalize,
            )
            return out.loss_nats + out.penalty, out

        return jax.grad(objective, has_aux=True)(params)

    found, out = grads(variables_of()["params"])
    assert float(out.loss_nats) > 0 and (float(out.penalty) > 0) == penalize
    for path, grad in jax.tree_util.tree_leaves_with_path(found):
        assert grad.dtype == jnp.float32
        assert float(jnp.linalg.norm(grad)) > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_side": 6}, r"image_side must be a multiple of patch \(4\); got 6"),
        ({"heads": 3}, r"width must be a multiple of heads \(3\); got 8"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"hidden": 0}, "hidden must be"),
    ],
)
def test_configurations_that_make_no_model(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.DEQViTConfig: {message}"):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize("shape", [(1, 8, 12, 1), (1, 4, 4, 1), (8, 8, 1)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="jdeq.models.DEQViT: images must"):
        DEQViT(TINY).init(jax.random.key(0), jnp.zeros(shape))
