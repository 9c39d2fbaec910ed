"""The reversible classifier: published counts, exact gradients, other solvers, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import REVDEQ_CIFAR, REVDEQ_SMALL, RevDEQ, RevDEQCell, RevDEQConfig

pytestmark = pytest.mark.compiles

TINY = RevDEQConfig(channels=(4, 8), expansions=(2, 1), num_classes=5, pool=2, group_size=4)
IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))


def variables_of(model, images=IMAGES):
    return jax.jit(model.init)(jax.random.key(1), images)


# McCallum et al. (2025): 10.32M for the multi-scale model, 24.7K at width 32.
@pytest.mark.parametrize(("config", "published"), [(REVDEQ_CIFAR, 10.32e6), (REVDEQ_SMALL, 24.7e3)])
def test_parameter_counts_are_the_published_ones(config, published):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(RevDEQ(config).init, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(published, rel=0.01)


def test_the_cell_is_its_formula():
    cell = RevDEQCell(features=8, expansion=2, group_size=4)
    z, x = jax.random.normal(jax.random.key(2), (2, 3, 4, 4, 8))
    variables = cell.init(jax.random.key(3), z, x)
    params = variables["params"]

    def norm(a, name):
        groups = np.asarray(a, np.float64).reshape(*a.shape[:3], -1, 4)
        mean = groups.mean(axis=(1, 2, 4), keepdims=True)
        var = groups.var(axis=(1, 2, 4), keepdims=True)
        out = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(a.shape)
        return out * np.asarray(params[name]["scale"]) + np.asarray(params[name]["bias"])

    def conv(a, name):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        padded = np.pad(np.asarray(a, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        out = np.zeros((*a.shape[:3], kernel.shape[-1]))
        for i in range(3):
            for j in range(3):
                window = padded[:, i : i + a.shape[1], j : j + a.shape[2]]
                out += window @ kernel[i, j]
        return out

    inner = norm(
        np.asarray(x) + conv(np.maximum(norm(conv(z, "conv1"), "norm1"), 0), "conv2"), "norm2"
    )
    want = norm(np.maximum(np.asarray(z) + inner, 0), "norm3")
    np.testing.assert_allclose(cell.apply(variables, z, x), want, atol=1e-5)


@pytest.mark.slow
def test_gradient_is_that_of_the_steps_in_every_stage():
    """In float64, where the kinks of ReLU do not blur the comparison."""
    model = RevDEQ(TINY, max_steps=3)
    variables = variables_of(model)

    def grads(model, variables, images):
        def loss(params):
            (logits, sol), _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), sol

        return jax.grad(loss, has_aux=True)(variables["params"])

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (variables, IMAGES))
        run = jax.jit(grads, static_argnums=0)
        got, sol = run(model, *wide)
        want, _ = run(model.clone(gradient=jdeq.Unrolled()), *wide)
        assert np.all(sol.stats.nfe == 2 * (2 * 3 + 1))  # two stages, three steps and the residual
        for path, leaf in jax.tree_util.tree_leaves_with_path(got):
            assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, want)


def test_the_same_cells_under_another_solver_and_rule():
    """At a tolerance both reach, the pair and Anderson give the same logits."""
    pair = RevDEQ(TINY, max_steps=200, rtol=1e-5, solver=jdeq.Reversible(beta=0.5))
    variables = variables_of(pair)
    anderson = pair.clone(solver=jdeq.Anderson(), gradient=jdeq.Implicit())
    (one, sol_one), (two, sol_two) = (
        jax.jit(model.apply)(variables, IMAGES) for model in (pair, anderson)
    )
    assert np.all(sol_one.stats.status == jdeq.Status.CONVERGED)
    assert np.all(sol_two.stats.status == jdeq.Status.CONVERGED)
    assert sol_two.stats.nfe.max() < sol_one.stats.nfe.min()
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_bfloat16_computation():
    model = RevDEQ(TINY, dtype=jnp.bfloat16, rtol=1e-2)
    logits, sol = jax.jit(model.apply)(variables_of(model), IMAGES)
    assert logits.dtype == jnp.float32 and sol.z[0].dtype == jnp.bfloat16
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "channels must name at least one stage"),
        ({"channels": (6, 8)}, r"channels must be positive multiples of group_size \(4\)"),
        ({"expansions": (1,)}, r"expansions must have one entry a stage \(2\); got \(1,\)"),
        ({"expansions": (1, 0)}, "expansions must be >= 1"),
        ({"pool": 0}, "pool must be >= 1; got 0"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.RevDEQConfig: {message}"):
        dataclasses.replace(TINY, **change)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="images must be .batch, height, width, channels"):
        RevDEQ(TINY).init(jax.random.key(0), jnp.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="the height of images must leave a multiple of pool=2"):
        RevDEQ(TINY).init(jax.random.key(0), jnp.zeros((2, 6, 8, 1)))
