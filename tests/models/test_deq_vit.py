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

pytestmark = pytest.mark.compiles

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


def layer_norm(params, h):
    centred = h - h.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * params["scale"] + params["bias"]


def dense(params, h):
    return h @ params["kernel"] + params["bias"]


def test_the_cell_is_its_formula():
    """In numpy, head by head, with weights of which none is 0 or 1."""
    cell = DEQViTCell(TINY)
    z, x = np.random.default_rng(0).normal(size=(2, 2, 5, 8)).astype(np.float32)
    keys = iter(jax.random.split(jax.random.key(4), 20))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), z, x)
    variables = jax.tree.map(lambda s: 0.5 * jax.random.normal(next(keys), s.shape), shapes)
    p = jax.device_get(variables["params"])
    h = z + x
    q, k, v = np.split(dense(p["qkv"], layer_norm(p["norm1"], h)), 3, axis=-1)
    heads = []
    for own in (slice(0, 4), slice(4, 8)):
        scores = q[..., own] @ k[..., own].swapaxes(1, 2) / np.sqrt(4)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ v[..., own])
    h = h + dense(p["out"], np.concatenate(heads, axis=-1))
    u = dense(p["up"], layer_norm(p["norm2"], h))
    gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    want = layer_norm(p["norm3"], h + dense(p["down"], gelu))
    np.testing.assert_allclose(jax.jit(cell.apply)(variables, z, x), want, rtol=1e-4, atol=1e-5)


def test_dropout_mask_is_fixed_by_the_rng_one_for_all_patches_and_off_without_it():
    cell = DEQViTCell(dataclasses.replace(TINY, dropout=0.5))
    z, x = jax.random.normal(jax.random.key(2), (2, 1, 5, 8))
    variables = jax.jit(cell.init)(jax.random.key(3), z, x)

    @jax.jit
    def f(z, x, seed):
        return cell.apply(variables, z, x, rngs={"dropout": jax.random.key(seed)})

    first, again, other = (f(z, x, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_allclose(f(z[:, order], x[:, order], 1), first[:, order], atol=1e-5)
    off = jax.jit(cell.apply)(variables, z, x)
    assert np.abs(first - off).max() > 1e-2
    np.testing.assert_allclose(off, jax.jit(DEQViTCell(TINY).apply)(variables, z, x), atol=1e-6)


def test_dropout_has_one_mask_for_all_evaluations():
    """With a new one at each there would be no fixed point to find."""
    config = dataclasses.replace(TINY, dropout=0.3)
    model = DEQViT(config, solver=jdeq.Picard(), rtol=1e-4, max_steps=60)
    apply = jax.jit(lambda v, seed: model.apply(v, IMAGES, rngs={"dropout": jax.random.key(seed)}))
    (one, sol), (two, _) = (apply(variables_of(), seed) for seed in (1, 2))
    assert (np.asarray(sol.stats.status) == jdeq.Status.CONVERGED).all(), sol.stats
    assert np.abs(one - two).max() > 1e-2


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
