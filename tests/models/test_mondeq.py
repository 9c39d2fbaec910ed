"""Monotone operator DEQs: monotone by construction, one equilibrium, exact gradients, counts."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.layers.monotone import (
    ForwardBackward,
    PeacemanRachford,
    circular_product,
    dense_product,
    tiered_product,
    transfer,
)
from jdeq.models import (
    MONDEQ_CIFAR_MULTI,
    MONDEQ_CIFAR_MULTI_LARGE,
    MONDEQ_CIFAR_SINGLE,
    MONDEQ_CIFAR_SINGLE_LARGE,
    MONDEQ_MNIST_DENSE,
    MonDEQ,
    MonDEQConfig,
    largest_step,
    tune_step,
)

pytestmark = pytest.mark.compiles

DENSE = MonDEQConfig(channels=(7,), num_classes=3, convolutional=False, margin=0.5)
SINGLE = MonDEQConfig(channels=(3,), num_classes=3, pool=2, margin=0.5)
MULTI = MonDEQConfig(channels=(2, 3), num_classes=3, margin=0.5)
CONFIGS = {"dense": DENSE, "single": SINGLE, "multi": MULTI}
PRODUCTS = {"dense": dense_product, "single": circular_product, "multi": tiered_product}
IMAGES = jax.random.normal(jax.random.key(0), (2, 4, 6, 1))


def variables_of(model, scale=2.0):
    """Random parameters, W larger than at the start."""
    variables = model.init(jax.random.key(1), IMAGES)

    def grow(path, a):
        return scale * a if a.ndim == 0 or "'a" in str(path) else a

    return jax.tree_util.tree_map_with_path(grow, variables)


def matrix(name, model, variables):
    """W as a matrix, column by column, of one sample."""
    weights, bias = model.apply(variables, IMAGES[:1], method=MonDEQ.operator)
    flat, unravel = jax.flatten_util.ravel_pytree(bias)

    def column(e):
        return jax.flatten_util.ravel_pytree(PRODUCTS[name](weights, unravel(e)))[0]

    return np.asarray(jax.vmap(column, out_axes=1)(jnp.eye(flat.size)), np.float64)


def evaluate(splitting, product, _, z, x):
    return splitting.update(product, z, x)


@functools.partial(jax.jit, static_argnums=(0, 3))
def solve(f, z0, x, solver):
    return jdeq.fixed_point(f, None, z0, x, solver=solver, rtol=1e-6, max_steps=2000)


def rows(state):
    """One flat vector a sample."""
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(state)], axis=1)


@pytest.mark.parametrize(
    ("config", "sides", "published"),
    [
        (MONDEQ_MNIST_DENSE, (28, 28, 1), 84e3),
        (MONDEQ_CIFAR_SINGLE, (32, 32, 3), 172e3),
        (MONDEQ_CIFAR_MULTI, (32, 32, 3), 170e3),
        (MONDEQ_CIFAR_SINGLE_LARGE, (32, 32, 3), 854e3),
        (MONDEQ_CIFAR_MULTI_LARGE, (32, 32, 3), 1.01e6),
    ],
)
def test_parameter_counts_are_the_published_ones(config, sides, published):
    images = jax.ShapeDtypeStruct((2, *sides), jnp.float32)
    shapes = jax.eval_shape(MonDEQ(config).init, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_monotone_for_any_parameters(name, scale):
    """The symmetric part of I - W has no eigenvalue below m."""
    model = MonDEQ(CONFIGS[name])
    w = matrix(name, model, variables_of(model, scale))
    gap = np.eye(len(w)) - (w + w.T) / 2
    assert np.linalg.eigvalsh(gap).min() >= 0.5 - 1e-5
    assert np.abs(w).max() > 0.1


def test_a_transfer_multiplies_as_a_circular_convolution_does():
    z = jax.random.normal(jax.random.key(2), (2, 5, 6, 3))
    conv = nn.Conv(4, (3, 3), padding="CIRCULAR", use_bias=False)
    variables = conv.init(jax.random.key(3), z)
    w = transfer(variables["params"]["kernel"], (5, 6))
    np.testing.assert_allclose(circular_product(w, z), conv.apply(variables, z), atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "single", pytest.param("multi", marks=pytest.mark.slow)])
def test_every_method_ends_in_the_one_equilibrium_from_ten_starts(name):
    """Against damped iteration of ``relu(W z + b)`` with the matrix, in float64."""
    config = CONFIGS[name]
    model = MonDEQ(config)
    variables = variables_of(model)
    w = matrix(name, model, variables)
    step = 0.5 / np.linalg.norm(np.eye(len(w)) - w, 2) ** 2  # m / L^2
    bias = model.apply(variables, IMAGES, method=MonDEQ.operator)[1]
    b = rows(bias)
    want = np.zeros_like(b, dtype=np.float64)
    for _ in range(20_000):
        want = np.maximum((1 - step) * want + step * (want @ w.T + b), 0)
    assert 0.1 < (want == 0).mean() < 0.9  # some units are off
    methods = [
        (ForwardBackward(step=float(step)), jdeq.Picard()),
        (ForwardBackward(step=float(step)), jdeq.Broyden()),
    ]
    if name != "multi":
        methods += [(PeacemanRachford(), jdeq.Picard()), (PeacemanRachford(), jdeq.Anderson())]
    for splitting, solver in methods:
        ours = model.clone(splitting=splitting)
        x = ours.apply(variables, IMAGES, method=MonDEQ.splitting_input)

        f = functools.partial(evaluate, splitting, PRODUCTS[name])
        for seed in range(10):
            key = jax.random.key(seed)
            z0 = jax.tree.map(lambda a, key=key: 3 * jax.random.normal(key, a.shape), x["bias"])
            z = solve(f, z0, x, solver).z
            if isinstance(splitting, PeacemanRachford):
                z = nn.relu(z)
            np.testing.assert_allclose(rows(z), want, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "splitting"),
    [
        ("dense", PeacemanRachford(step=0.7)),
        ("dense", ForwardBackward(step=0.1)),
        ("single", PeacemanRachford(step=0.7)),
        ("single", ForwardBackward(step=0.1)),
        pytest.param("multi", ForwardBackward(step=0.1), marks=pytest.mark.slow),
    ],
)
def test_gradient_against_finite_differences(name, splitting):
    """In float64, with units that are off: every parameter at once, along random directions."""
    with jax.enable_x64(True):
        model = MonDEQ(CONFIGS[name], splitting=splitting, rtol=1e-12, max_steps=500)
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables_of(model, 1.3))
        images = IMAGES.astype(jnp.float64)

        @jax.jit
        def loss(variables):
            logits, sol = model.apply(variables, images)
            return jnp.sum(jnp.sin(logits)), sol

        gradient, sol = jax.jit(jax.grad(loss, has_aux=True))(variables)
        assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
        flat, unravel = jax.flatten_util.ravel_pytree(gradient)
        assert np.all(np.isfinite(flat))
        for seed in range(3):
            way = jax.random.normal(jax.random.key(seed), flat.shape)
            ahead, behind = (
                loss(jax.tree.map(lambda a, d, s=s: a + s * 1e-6 * d, variables, unravel(way)))[0]
                for s in (1, -1)
            )
            assert float((ahead - behind) / 2e-6) == pytest.approx(float(flat @ way), rel=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_largest_step_is_that_of_the_matrix(name):
    model = MonDEQ(CONFIGS[name])
    variables = variables_of(model)
    w = matrix(name, model, variables)
    want = 2 * 0.5 / np.linalg.norm(np.eye(len(w)) - w, 2) ** 2
    assert largest_step(model, variables, IMAGES) == pytest.approx(want, rel=0.02)


def test_tune_step_takes_the_cheapest():
    model = MonDEQ(SINGLE, splitting=ForwardBackward(), solver=jdeq.Picard(), max_steps=500)
    variables = variables_of(model, 1.0)
    steps = (0.4, 0.1, 0.02)
    costs = {
        step: float(
            model.clone(splitting=ForwardBackward(step=step))
            .apply(variables, IMAGES)[1]
            .stats.nfe.mean()
        )
        for step in steps
    }
    assert tune_step(model, variables, IMAGES, steps=steps) == min(costs, key=costs.get)
    with pytest.raises(ValueError, match=r"tune_step: steps must hold one that converges"):
        tune_step(model.clone(max_steps=2), variables, IMAGES, steps=(0.01,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "channels must be >= 1, one a tier"),
        ({"margin": 0.0}, "margin must be > 0; got 0.0"),
        ({"convolutional": False}, "convolutional must be True for several tiers or a pool"),
        ({"pool": 0}, "pool must be >= 1; got 0"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.MonDEQConfig: {message}"):
        dataclasses.replace(SINGLE, **change)


@pytest.mark.parametrize("name", ["dense", "single"])
def test_bfloat16(name):
    """The transforms and inverses in float32, all else in the dtype of the parameters."""
    model = MonDEQ(CONFIGS[name], splitting=PeacemanRachford(), rtol=0.02, max_steps=100)
    variables = model.init(jax.random.key(1), IMAGES)
    want, _ = model.apply(variables, IMAGES)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (variables, IMAGES))
    got, solution = model.apply(*half)
    assert got.dtype == jnp.bfloat16 and jax.tree.leaves(solution.z)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.1)


def test_what_does_not_fit_is_refused():
    for splitting in (ForwardBackward, PeacemanRachford):
        with pytest.raises(ValueError, match=f"{splitting.__name__}: step must be > 0; got -1"):
            splitting(step=-1)
    with pytest.raises(ValueError, match="splitting must be ForwardBackward for several tiers"):
        MonDEQ(MULTI, splitting=PeacemanRachford()).init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match="the height of images must be divisible by 2"):
        MonDEQ(MULTI).init(jax.random.key(0), jnp.zeros((1, 3, 4, 1)))
    with pytest.raises(ValueError, match=r"sides must be at least .* \(3, 3\); got \(2, 2\)"):
        MonDEQ(dataclasses.replace(SINGLE, pool=1)).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="images must be .batch, height, width, channels"):
        MonDEQ(SINGLE).init(jax.random.key(0), jnp.zeros((4, 4)))
