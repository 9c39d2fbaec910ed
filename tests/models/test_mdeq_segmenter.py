"""MDEQ segmentation: shapes, parameter counts, independence, gradients, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.data import IGNORED, Dataset
from jdeq.models import (
    MDEQ_CITYSCAPES_LARGE,
    MDEQ_CITYSCAPES_SMALL,
    MDEQ_CITYSCAPES_XL,
    MDEQCell,
    MDEQSegmenter,
    MDEQSegmenterConfig,
)
from jdeq.training import cross_entropy_loss

pytestmark = pytest.mark.compiles

TINY = MDEQSegmenterConfig(
    channels=(4, 4), num_classes=3, expansion=1, groups=2, downsamples=1, dropout=0.1
)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 16, 3))


@functools.cache
def tiny():
    """With the solver and the rule that compile quickest."""
    model = MDEQSegmenter(TINY, solver=jdeq.Picard(), gradient=jdeq.OneStep(), max_steps=3)
    return model, jax.jit(model.init)(jax.random.key(1), IMAGES)


@functools.cache
def compiled():
    return jax.jit(tiny()[0].apply)


# Counted by hand from the published code and configuration files: stem, branches, fusion,
# post-fusion, head.
@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (MDEQ_CITYSCAPES_SMALL, 11_296 + 7_843_200 + 784_512 + 88_480 + 240_979),
        (MDEQ_CITYSCAPES_LARGE, 66_640 + 48_984_000 + 4_891_200 + 547_600 + 1_466_419),
        (MDEQ_CITYSCAPES_XL, 80_344 + 71_120_280 + 5_917_472 + 662_200 + 1_771_459),
    ],
    ids=["small", "large", "xl"],
)
def test_parameter_count_of_the_published_configurations(config, by_hand):
    images = jax.ShapeDtypeStruct((1, 32, 64, 3), jnp.float32)
    shapes = jax.eval_shape(MDEQSegmenter(config).init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == by_hand


def test_state_size_of_one_sample():
    x = jax.ShapeDtypeStruct((1, 128, 256, 32), jnp.float32)
    state = jax.eval_shape(MDEQCell(MDEQ_CITYSCAPES_SMALL).initial_state, x)
    assert sum(leaf.size for leaf in state) == 1_966_080


def test_every_pixel_has_logits_in_float32():
    model, variables = tiny()
    logits, sol = jax.eval_shape(model.clone(dtype=jnp.bfloat16).apply, variables, IMAGES)
    assert (logits.shape, logits.dtype) == ((2, 8, 16, 3), jnp.float32)
    assert [z.shape for z in sol.z] == [(2, 4, 8, 4), (2, 2, 4, 4)]
    assert all(z.dtype == jnp.bfloat16 for z in sol.z)


def bilinear(maps, height, width):
    """Between the centres of pixels; beyond the outermost ones their values."""
    for axis, size in ((1, height), (2, width)):
        old = maps.shape[axis]
        centres = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)))
        maps = np.moveaxis(np.moveaxis(maps, axis, -1) @ weights.T, -1, axis)
    return maps


def test_logits_are_those_of_the_equilibrium_by_the_formula():
    """By the running statistics, which are here not those of the beginning."""
    _, variables = tiny()
    stats = variables["batch_stats"] | {
        "BatchNorm_0": {"mean": np.linspace(-1, 1, 8), "var": np.linspace(0.5, 2, 8)}
    }
    logits, sol = compiled()({**variables, "batch_stats": stats}, IMAGES)
    params, stats = jax.device_get((variables["params"], stats["BatchNorm_0"]))
    fine, coarse = map(np.asarray, sol.z)
    h = np.concatenate([fine, bilinear(coarse, 4, 8)], axis=-1)
    h = h @ params["head_conv"]["kernel"][0, 0] + params["head_conv"]["bias"]
    h = (h - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    h = np.maximum(h * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"], 0)
    h = h @ params["classify"]["kernel"][0, 0] + params["classify"]["bias"]
    np.testing.assert_allclose(logits, bilinear(h, 8, 16), rtol=1e-4, atol=1e-4)


def test_images_do_not_affect_one_another():
    _, variables = tiny()
    both, _ = compiled()(variables, IMAGES)
    other, _ = compiled()(variables, IMAGES.at[1].multiply(-3.0))
    np.testing.assert_allclose(both[0], other[0], atol=1e-5)
    assert not np.allclose(both[1], other[1], atol=1e-2)
    assert np.ptp(np.asarray(both[0]), axis=(0, 1)).min() > 1e-3  # pixels differ


@pytest.mark.slow
def test_gradient_of_the_pixels_that_count_reaches_every_parameter():
    """With a penalty; a label that is ignored moves nothing."""
    model, variables = tiny()
    loss = cross_entropy_loss(model, probe_backward=False)
    labels = np.asarray(jax.random.randint(jax.random.key(2), (2, 8, 16), 0, 3)).astype(np.int32)
    labels[:, :4] = IGNORED
    state = {"batch_stats": variables["batch_stats"]}

    @jax.jit
    def grads(params, labels):
        def objective(params):
            out = loss(
                params,
                state,
                Dataset(IMAGES, labels),
                key=jax.random.key(3),
                probe=jdeq.backward_probe(),
                penalize=True,
            )
            return out.loss_nats + out.penalty, out

        return jax.grad(objective, has_aux=True)(params)

    found, out = grads(variables["params"], labels)
    assert 0.5 < float(out.loss_nats) < 3 and float(out.penalty) > 0
    for path, grad in jax.tree_util.tree_leaves_with_path(found):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(grad).all(), name
        if "head_conv']['bias" not in name:  # a bias in front of a BatchNorm changes nothing
            assert float(jnp.linalg.norm(grad)) > 1e-7, name
    moved = labels.copy()
    moved[0, 5] = (moved[0, 5] + 1) % 3
    assert grads(variables["params"], moved)[1].loss_nats != out.loss_nats


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 6, 8, 3), r"MDEQSegmenter: the height of images must be divisible by 4 .*; got 6"),
        ((1, 8, 10, 3), r"MDEQSegmenter: the width of images must be divisible by 4 .*; got 10"),
        ((1, 8, 8), r"MDEQSegmenter: images must be \[batch, height, width, channels\]; got"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(MDEQSegmenter(TINY).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "channels must name at least one scale"),
        ({"channels": (4, 5)}, r"channels must be multiples of groups \(2\); got \(4, 5\)"),
        ({"num_classes": 0}, "num_classes must be >= 1; got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
    ],
)
def test_configurations_that_make_no_model(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.MDEQSegmenterConfig: {message}"):
        dataclasses.replace(TINY, **change)
