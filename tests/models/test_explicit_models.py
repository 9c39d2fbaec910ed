"""ResNet and DenseNet: published parameter counts, shapes, batch statistics, gradients, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import (
    DENSENET121_CIFAR,
    DENSENET121_IMAGENET,
    RESNET18_CIFAR,
    RESNET18_IMAGENET,
    RESNET50_IMAGENET,
    RESNET101_CIFAR,
    RESNET101_IMAGENET,
    DenseNet,
    DenseNetConfig,
    ResNet,
    ResNetConfig,
    densenet,
    resnet,
)

PLAIN = ResNetConfig(blocks=(1, 1), num_classes=3, small_images=True, width=4)
BOTTLENECK = ResNetConfig(blocks=(1,), num_classes=3, bottleneck=True, width=4)
DENSE = DenseNetConfig(layers=(1, 2), num_classes=3, growth=2, small_images=True)
LARGE_DENSE = DenseNetConfig(layers=(1,), num_classes=3, growth=2)
TINY = {
    "resnet": ResNet(PLAIN),
    "bottleneck": ResNet(BOTTLENECK),
    "densenet": DenseNet(DENSE),
    "large densenet": DenseNet(LARGE_DENSE),
}
IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))


# The counts that every implementation of these architectures has.
@pytest.mark.parametrize(
    ("model", "count"),
    [
        (ResNet(RESNET18_CIFAR), 11_173_962),
        (ResNet(RESNET101_CIFAR), 42_512_970),
        (ResNet(RESNET18_IMAGENET), 11_689_512),
        (ResNet(RESNET50_IMAGENET), 25_557_032),
        (ResNet(RESNET101_IMAGENET), 44_549_160),
        (DenseNet(DENSENET121_CIFAR), 6_956_298),
        (DenseNet(DENSENET121_IMAGENET), 7_978_856),
    ],
    ids=lambda value: "" if isinstance(value, ResNet | DenseNet) else f"{value:,}",
)
def test_parameter_counts_are_the_published_ones(model, count):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", TINY)
def test_logits_solution_and_statistics(name):
    model = TINY[name]
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)
    (logits, sol), updated = jax.jit(
        lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"])
    )(variables)
    assert logits.shape == (3, 3) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.ptp(np.asarray(logits), axis=0).min() > 1e-3
    assert (np.asarray(sol.stats.nfe) == 1).all() and not np.asarray(sol.stats.residual).any()
    assert (np.asarray(sol.stats.status) == jdeq.Status.CONVERGED).all()
    for old, new in zip(*map(jax.tree.leaves, (variables["batch_stats"], updated)), strict=True):
        assert not np.array_equal(old, new)
    half, _ = jax.eval_shape(model.clone(dtype=jnp.bfloat16).apply, variables, IMAGES)
    assert half.dtype == jnp.float32


def random_variables(module, x, train):
    """None of the weights and statistics is 0 or 1; variances are positive."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train))
    rng = np.random.default_rng(1)

    def draw(path, shape):
        positive = "var" in jax.tree_util.keystr(path)
        values = rng.uniform(0.5, 2, shape.shape) if positive else rng.normal(size=shape.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def conv(x, kernel, stride=1):
    """As a sum over the kernel's places, padded to keep the sides at stride 1."""
    size, pad = len(kernel), len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((side - 1) // stride * stride + 1 for side in x.shape[1:3])
    return sum(
        padded[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def norm(variables, path, x, train):
    params, stats = variables["params"][path], variables["batch_stats"][path]
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("strides", [1, 2])
def test_a_residual_block_is_its_formula(strides, train):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    block = resnet._Block(3 * strides, strides, False, None)
    v = random_variables(block, x, train)
    p = v["params"]
    y = relu(norm(v, "BatchNorm_0", conv(x, p["Conv_0"]["kernel"], strides), train))
    y = norm(v, "BatchNorm_1", conv(y, p["Conv_1"]["kernel"]), train)
    shortcut = x
    if strides == 2:
        shortcut = norm(v, "shortcut_norm", conv(x, p["shortcut"]["kernel"], 2), train)
    found, updated = block.apply(v, x, train, mutable=["batch_stats"])
    np.testing.assert_allclose(found, relu(y + shortcut), rtol=1e-4, atol=1e-4)
    old, new = (s["batch_stats"]["BatchNorm_0"]["mean"] for s in (v, updated))
    seen = conv(x, p["Conv_0"]["kernel"], strides).mean((0, 1, 2))
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * seen if train else old, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_a_dense_layer_is_its_formula(train):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    layer = densenet._Layer(2, None)
    v = random_variables(layer, x, train)
    y = conv(relu(norm(v, "BatchNorm_0", x, train)), v["params"]["Conv_0"]["kernel"])
    y = conv(relu(norm(v, "BatchNorm_1", y, train)), v["params"]["Conv_1"]["kernel"])
    found, _ = layer.apply(v, x, train, mutable=["batch_stats"])
    want = np.concatenate([x, y], axis=-1)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_gradient_reaches_every_parameter(name):
    model = TINY[name]
    variables = jax.jit(model.init)(jax.random.key(1), IMAGES)

    @jax.jit
    def grads(params):
        def loss(params):
            variables_ = {**variables, "params": params}
            (logits, _), _ = model.apply(variables_, IMAGES, train=True, mutable=["batch_stats"])
            return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))

        return jax.grad(loss)(params)

    for path, grad in jax.tree_util.tree_leaves_with_path(grads(variables["params"])):
        assert float(jnp.linalg.norm(grad)) > 1e-6, jax.tree_util.keystr(path)


def test_sides_after_the_stages():
    """Strides: the stem of large images quarters, a stage halves."""

    def sides(model, side):
        found = []

        def watch(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if (context.module.name or "").startswith(("stage", "block")):
                found.append(out.shape[1])
            return out

        with nn.intercept_methods(watch):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        return sorted(set(found), reverse=True)

    assert sides(ResNet(RESNET18_IMAGENET), 224) == [56, 28, 14, 7]
    assert sides(ResNet(RESNET18_CIFAR), 32) == [32, 16, 8, 4]
    dense = DenseNetConfig(layers=(1, 1, 1, 1), num_classes=2)
    assert sides(DenseNet(dense), 224) == [56, 28, 14, 7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetConfig(blocks=(), num_classes=2), "ResNetConfig: blocks must name"),
        (lambda: ResNetConfig(blocks=(1, 0), num_classes=2), "blocks must be >= 1; got 0"),
        (lambda: ResNetConfig(blocks=(1, 2.0), num_classes=2), "blocks must be an integer"),
        (lambda: ResNetConfig(blocks=(1,), num_classes=0), "num_classes must be"),
        (lambda: DenseNetConfig(layers=(), num_classes=2), "DenseNetConfig: layers must name"),
        (lambda: DenseNetConfig(layers=(True,), num_classes=2), "layers must be an integer"),
        (lambda: DenseNetConfig(layers=(0,), num_classes=2), "DenseNetConfig: layers must be >= 1"),
        (lambda: DenseNetConfig(layers=(1,), num_classes=2, growth=0), "growth must be"),
        (lambda: ResNet(PLAIN).init(jax.random.key(0), jnp.zeros((4, 4))), "ResNet: images must"),
        (lambda: DenseNet(DENSE).init(jax.random.key(0), jnp.zeros((4, 4))), "DenseNet: images"),
        (
            lambda: DenseNet(DENSENET121_IMAGENET).init(
                jax.random.key(0), jnp.zeros((1, 64, 28, 3))
            ),
            "the width of images must be >= 29; got 28",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
