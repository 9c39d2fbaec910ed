"""loop_conv equals lax.conv_general_dilated: value, jvp and gradients."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.layers import loop_conv
from jdeq.layers.convolution import made_for

NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    "same": ((2, 8, 6, 3), (3, 3, 3, 5), (1, 1), "SAME", {}),
    "valid": ((2, 8, 6, 3), (3, 2, 3, 5), (1, 1), "VALID", {}),
    "strided": ((2, 8, 8, 3), (3, 3, 3, 5), (2, 2), ((1, 1), (1, 1)), {}),
    "strided, odd": ((2, 9, 7, 3), (3, 3, 3, 5), (2, 3), "SAME", {}),
    "1x1": ((2, 8, 6, 3), (1, 1, 3, 5), (1, 1), "SAME", {}),
    "groups": ((2, 8, 6, 4), (3, 3, 2, 6), (1, 1), "SAME", {"feature_group_count": 2}),
    "dilated": ((2, 8, 6, 3), (3, 3, 3, 5), (1, 1), "SAME", {"rhs_dilation": (2, 2)}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_lax(name):
    x_shape, w_shape, strides, padding, options = CASES[name]
    x = jax.random.normal(jax.random.key(0), x_shape)
    w = jax.random.normal(jax.random.key(1), w_shape)
    options = {"dimension_numbers": NHWC, **options}

    def run(conv):
        def f(x, w):
            return jnp.sin(conv(x, w, strides, padding, **options))

        y, tangent = jax.jvp(f, (x, w), (jnp.cos(x), jnp.cos(w)))
        return y, tangent, *jax.grad(lambda x, w: jnp.sum(f(x, w)), (0, 1))(x, w)

    for ours, theirs in zip(run(loop_conv), run(jax.lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu",), ("cpu", "cuda")])
def test_a_program_made_for_other_platforms_convolves_there(platforms):
    x, w = jnp.ones((2, 8, 6, 3)), jnp.ones((3, 3, 3, 5))

    @jax.jit
    def f(x, w):
        return loop_conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    with made_for(platforms):
        program = jax.export.export(f, platforms=platforms)(x, w)
    text = program.mlir_module()
    assert ("stablehlo.convolution" in text) == ("cuda" in platforms)
    assert ("stablehlo.dot_general" in text) == ("cpu" in platforms)
    if "cpu" in platforms:
        want = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
        np.testing.assert_allclose(program.call(x, w), want)


def test_one_axis_and_other_layouts():
    x, w = jnp.ones((2, 3, 9)), jnp.ones((4, 3, 2))
    numbers = ("NCH", "OIH", "NCH")
    np.testing.assert_allclose(
        loop_conv(x, w, (1,), "SAME", dimension_numbers=numbers),
        jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=numbers),
        rtol=1e-6,
    )


def test_fits_flax_conv():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    plain = nn.Conv(4, (3, 3), strides=2, padding=1)
    variables = plain.init(jax.random.key(1), x)
    ours = nn.Conv(4, (3, 3), strides=2, padding=1, conv_general_dilated=loop_conv)
    np.testing.assert_allclose(
        ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU's form of it")
def test_no_convolution_is_left_for_the_loop_on_a_cpu():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 3))

    def f(x):
        return loop_conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    jaxpr = str(jax.make_jaxpr(lambda x, g: jax.vjp(f, x)[1](g))(x, x))
    assert "dot_general" in jaxpr and "conv_general_dilated" not in jaxpr
