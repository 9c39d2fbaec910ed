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
