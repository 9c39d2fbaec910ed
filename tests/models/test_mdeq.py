"""MDEQ: shapes, published parameter counts, gradients, dropout, precision, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import (
    MDEQ,
    MDEQ_CIFAR_LARGE,
    MDEQ_CIFAR_TINY,
    MDEQ_DIGITS,
    MDEQ_IMAGENET_LARGE,
    MDEQ_IMAGENET_LARGE_JR,
    MDEQ_IMAGENET_SMALL,
    MDEQ_IMAGENET_SMALL_JR,
    MDEQ_IMAGENET_XL,
    MDEQCell,
    MDEQConfig,
)

pytestmark = pytest.mark.compiles

SMALL = MDEQConfig(
    channels=(4, 8, 8),
    num_classes=5,
    head_channels=(2, 4, 3),
    head_features=12,
    expansion=2,
    groups=2,
)
PAIR = dataclasses.replace(SMALL, channels=(4, 8), head_channels=(2, 3))
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))


def leaf_sizes(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def compiled_cell(config):
    """A cell compiled, its variables and an injection like the stem's: non-negative, order 1."""
    cell = MDEQCell(config)
    x = jax.nn.relu(jax.random.normal(jax.random.key(1), (2, 8, 8, config.channels[0])))
    variables = jax.jit(lambda key: cell.init(key, cell.initial_state(x), x))(jax.random.key(0))
    return jax.jit(cell.apply), variables, x, cell.initial_state(x)


@functools.cache
def model_variables(config=PAIR):
    return jax.jit(MDEQ(config=config, max_steps=1).init)(jax.random.key(1), IMAGES)


def contractive(variables):
    """The same cell with the state's own share turned down, so that plain iteration converges.

    At its initialisation the published cell is not a contraction (its Jacobian's spectral radius
    is above 1): here the injection dominates the finest scale and that one the others.
    """

    def rescale(path, leaf):
        name = jax.tree_util.keystr(path)
        factors = {"block0']['conv2']['gain": 0.1, "block0']['norm2']['scale": 4.0}
        factors |= {
            f"fuse{i}to{j}": 10.0 if i == 0 else 0.1 for i in range(3) for j in range(3) if i != j
        }
        factor = next((f for key, f in factors.items() if key in name), 1.0)
        return leaf * factor if name.endswith(("['scale']", "['gain']")) else leaf

    return jax.tree_util.tree_map_with_path(rescale, variables)


# Counted by hand from the published code and configuration files: stem, branches, fusion,
# post-fusion, head. What the papers print: jdeq/models/mdeq_config.py.
@pytest.mark.parametrize(
    "config, by_hand",
    [
        (MDEQ_CIFAR_LARGE, 11_296 + 7_843_200 + 784_512 + 87_520 + 2_370_910),
        (MDEQ_CIFAR_TINY, 5_928 + 104_640 + 5_856 + 1_200 + 41_266),
        (MDEQ_IMAGENET_SMALL, 11_296 + 7_843_200 + 784_512 + 88_480 + 8_081_448),
        (MDEQ_IMAGENET_SMALL_JR, 11_296 + 7_843_200 + 784_512 + 87_520 + 9_886_968),
        (MDEQ_IMAGENET_LARGE, 66_640 + 48_984_000 + 4_891_200 + 547_600 + 12_574_184),
        (MDEQ_IMAGENET_LARGE_JR, 66_640 + 48_984_000 + 4_891_200 + 545_200 + 12_574_184),
        (MDEQ_IMAGENET_XL, 80_344 + 59_268_000 + 5_917_472 + 659_560 + 12_682_984),
    ],
    ids=[
        "cifar large",
        "cifar tiny",
        "imagenet small",
        "imagenet small jr",
        "imagenet large",
        "imagenet large jr",
        "imagenet xl",
    ],
)
def test_parameter_count_of_the_published_configurations(config, by_hand):
    assert parameters(MDEQ(config=config)) == by_hand


def test_the_printed_63m_are_the_large_model_with_the_head_of_the_small_one():
    head = MDEQ_IMAGENET_SMALL.head_channels
    config = dataclasses.replace(MDEQ_IMAGENET_LARGE, head_channels=head)
    assert parameters(MDEQ(config=config)) == pytest.approx(63e6, rel=0.002)


def parameters(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return leaf_sizes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])


@pytest.mark.parametrize(
    "config, side, size",
    [
        (MDEQ_CIFAR_LARGE, 32, 61_440),
        (MDEQ_IMAGENET_SMALL, 56, 188_160),
        (MDEQ_IMAGENET_LARGE, 56, 470_400),
    ],
    ids=["cifar large", "imagenet small", "imagenet large"],
)
def test_state_size_of_one_sample(config, side, size):
    x = jax.ShapeDtypeStruct((1, side, side, config.channels[0]), jnp.float32)
    assert leaf_sizes(jax.eval_shape(MDEQCell(config).initial_state, x)) == size


@pytest.mark.parametrize("channels", [(8,), (8, 16), (4, 8, 8), (4, 8, 8, 4)])
@pytest.mark.parametrize("downsamples", [0, 3])
def test_shapes_for_any_number_of_scales(channels, downsamples):
    n = len(channels)
    config = MDEQConfig(
        channels=channels,
        num_classes=5,
        head_channels=(2,) * n,
        head_features=6,
        groups=4,
        downsamples=downsamples,
    )
    side = 2 ** (downsamples + n)
    images = jnp.zeros((3, side, 2 * side, 1))
    model = MDEQ(config=config)
    (logits, sol), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (3, 5) and logits.dtype == jnp.float32
    assert [z.shape for z in sol.z] == [
        (3, 2 ** (n - i), 2 ** (n - i + 1), c) for i, c in enumerate(channels)
    ]


@pytest.mark.slow
def test_cell_is_bounded_whatever_its_weights():
    f, variables, x, z = compiled_cell(SMALL)
    for scale in (1.0, 30.0):
        scaled = jax.tree.map(lambda p, s=scale: s * p, variables)
        for _ in range(30):
            z = f(scaled, z, x)
        # A GroupNorm without affine parameters comes last: mean square at most 1.
        assert all(float(jnp.mean(jnp.square(leaf))) <= 1.001 for leaf in z)


def test_only_the_finest_scale_sees_the_injection_directly():
    _, variables, x, z = compiled_cell(SMALL)
    apply = functools.partial(
        MDEQCell(SMALL).apply, variables, z, capture_intermediates=True, mutable=["intermediates"]
    )
    apply = jax.jit(lambda x, apply=apply: apply(x)[1]["intermediates"])
    a, b = apply(x), apply(2 * x + 1)
    blocks = [f"block{i}" for i in range(3)]
    moved = [not np.allclose(a[k]["__call__"][0], b[k]["__call__"][0]) for k in blocks]
    assert moved == [True, False, False]


def test_every_scale_reaches_every_scale():
    f, variables, x, z = compiled_cell(SMALL)
    z = f(variables, z, x)
    base = f(variables, z, x)
    for j in range(3):
        moved = f(variables, (*z[:j], z[j] + 1 + z[j] ** 2, *z[j + 1 :]), x)
        assert all(float(jnp.max(jnp.abs(a - b))) > 1e-3 for a, b in zip(base, moved, strict=True))


def test_a_sample_does_not_depend_on_its_batch_mates():
    f, variables, x, z = compiled_cell(SMALL)
    z = f(variables, z, x)
    together = f(variables, z, x)
    other = f(variables, tuple(leaf.at[0].set(7.0) for leaf in z), x.at[0].set(jnp.nan))
    for a, b in zip(together, other, strict=True):
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-6)


def test_dropout_mask_is_fixed_by_the_rng_and_off_without_it():
    without, variables, x, z = compiled_cell(PAIR)
    f = jax.jit(MDEQCell(dataclasses.replace(PAIR, dropout=0.5)).apply)
    z = jax.tree.map(jnp.ones_like, z)
    first, again, other = (
        f(variables, z, x, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    off = f(variables, z, x)[0]
    assert not np.allclose(first, off)
    np.testing.assert_allclose(off, without(variables, z, x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_model_converges_also_under_dropout():
    model = MDEQ(config=dataclasses.replace(PAIR, dropout=0.3))
    variables = contractive(model_variables())
    # With a new mask at every evaluation there would be no fixed point to find.
    rngs = {"dropout": jax.random.key(2)}
    _, sol = jax.jit(model.apply)(variables, IMAGES, rngs=rngs)
    assert (np.asarray(sol.stats.status) == jdeq.Status.CONVERGED).all(), sol.stats


@pytest.mark.parametrize(
    "solver, gradient",
    [
        (jdeq.Anderson(), jdeq.Implicit()),
        pytest.param(jdeq.Picard(), jdeq.Unrolled(), marks=pytest.mark.slow),
    ],
    ids=["implicit", "unrolled"],
)
def test_gradient_reaches_every_parameter(solver, gradient):
    model = MDEQ(config=PAIR, solver=solver, gradient=gradient, max_steps=4)
    variables = model_variables()

    @jax.jit
    def grads(params):
        def loss(params):
            (logits, _), _ = model.apply(
                {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
            )
            return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))

        return jax.grad(loss)(params)

    for path, grad in jax.tree_util.tree_leaves_with_path(grads(variables["params"])):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(grad).all(), name
        # A bias in front of a BatchNorm changes nothing: its gradient is rounding.
        if not (name.endswith("['bias']") and "Conv" in name):
            assert float(jnp.linalg.norm(grad)) > 1e-6, name


def test_pretraining_is_a_stack_of_the_same_cell():
    """Picard with Unrolled and max_steps = 3 is three weight-tied layers on the same variables."""
    layers = MDEQ(config=PAIR).clone(solver=jdeq.Picard(), gradient=jdeq.Unrolled(), max_steps=3)
    variables = model_variables()
    (_, sol), captured = jax.jit(
        lambda v: layers.apply(
            v,
            IMAGES,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "stem",
        )
    )(variables)
    x = captured["intermediates"]["stem"]["__call__"][0]
    f, _, _, _ = compiled_cell(PAIR)
    z = MDEQCell(PAIR).initial_state(x)
    for _ in range(3):
        z = f({"params": variables["params"]["deq"]["cell"]}, z, x)
    for ours, by_hand in zip(sol.z, z, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-4)


def test_batch_statistics_live_in_stem_and_head_only():
    model, variables = MDEQ(config=PAIR, max_steps=2), model_variables()
    assert set(variables["batch_stats"]) == {"stem", "head"}
    train = jax.jit(lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"])[1])
    after = train(variables)["batch_stats"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], after)
    assert all(jax.tree.leaves(changed))
    jax.eval_shape(model.apply, variables, IMAGES)  # evaluation updates nothing: none is mutable


def test_bfloat16_computation():
    model = MDEQ(config=PAIR, rtol=2e-2, max_steps=8)
    variables = contractive(model_variables())
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    expected, _ = jax.jit(model.apply)(variables, IMAGES)
    logits, sol = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, IMAGES)
    assert logits.dtype == jnp.float32
    assert all(z.dtype == jnp.bfloat16 for z in sol.z)
    # 8 bits of mantissa through some 40 layers: a few percent of logits of order 1.
    np.testing.assert_allclose(logits, expected, atol=0.1)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 6, 8, 1), r"MDEQ: the height of images must be divisible by 4 .*; got 6"),
        ((1, 8, 10, 1), r"MDEQ: the width of images must be divisible by 4 .*; got 10"),
        ((1, 8, 8), r"MDEQ: images must be \[batch, height, width, channels\]; got \(1, 8, 8\)"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        MDEQ(config=SMALL).init(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": ()}, "channels must name at least one scale"),
        ({"channels": (4, 5, 8)}, r"channels must be multiples of groups \(2\); got \(4, 5, 8\)"),
        ({"head_channels": (2, 4)}, r"head_channels must have one entry per scale \(3\)"),
        ({"head_channels": (2, 0, 4)}, "head_channels must be >= 1"),
        ({"channels": (4, 8.0, 8)}, "channels must be an integer >= 1; got 8.0"),
        ({"channels": (4, 0, 8)}, "channels must be >= 1; got 0"),
        (
            {"channels": (5, 10, 10), "groups": 5},
            r"channels must be multiples of groups // 2 \(2\); got \(5, 10, 10\)",
        ),
        ({"head_channels": (2, 4, 3.0)}, "head_channels must be an integer >= 1; got 3.0"),
        ({"head_features": True}, "head_features must be an integer >= 1; got True"),
        ({"groups": 2.0}, "groups must be an integer >= 1; got 2.0"),
        ({"num_classes": 0}, "num_classes must be >= 1; got 0"),
        ({"expansion": 0}, "expansion must be >= 1; got 0"),
        ({"downsamples": -1}, "downsamples must be >= 0; got -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
    ],
)
def test_configurations_that_make_no_model(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.MDEQConfig: {message}"):
        dataclasses.replace(SMALL, **change)


def test_a_single_scale_has_no_fusion_to_divide_for():
    config = dataclasses.replace(SMALL, channels=(5,), head_channels=(2,), groups=5)
    assert config.groups == 5


def test_digits_configuration_is_small():
    params = jax.eval_shape(
        MDEQ(config=MDEQ_DIGITS).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )["params"]
    assert leaf_sizes(params) < 100_000
