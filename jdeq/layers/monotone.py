"""Strongly monotone linear maps, and the splittings that solve ``z = relu(W z + b)`` with them.

    W = (1 - m) I - A^T A + B - B^T,  so that  <z, (I - W) z> >= m ||z||^2  and z is unique

Source: Winston and Kolter (2020), Monotone operator equilibrium networks, arXiv 2006.08591,
sections 3 and 4.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, PyTree

from jdeq import tree
from jdeq.layers.convolution import loop_conv

Product = Callable[[Any, PyTree], PyTree]
"""``(weights, z) -> W z``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardBackward:
    """``z <- relu((1 - a) z + a (W z + b))``.

    Plain iteration converges for ``0 < a < 2 m / L^2``, L the spectral norm of I - W; Anderson
    often does beyond. Any W.

    Args:
      step: a, > 0.
    Raises:
      ValueError: when built, if ``step`` is not positive.
    Cost: a product with W an evaluation.
    """

    step: float = 1.0

    def __post_init__(self):
        _check_step(self)

    def update(self, product: Product, z: PyTree, x: dict[str, Any]) -> PyTree:
        a = self.step
        image = jax.tree.map(jnp.add, product(x["weights"], z), x["bias"])
        return jax.tree.map(lambda z, i: nn.relu((1.0 - a) * z + a * i), z, image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeacemanRachford:
    """``u <- 2 V (|u| + a b) - |u|`` with ``V = (I + a (I - W))^-1``; then ``z = relu(u)``.

    Plain iteration converges for every a > 0. W must be one whose resolvent V is at hand: dense or
    a circular convolution.

    Args:
      step: a, > 0.
    Raises:
      ValueError: when built, if ``step`` is not positive.
    Cost: a product with V an evaluation; V is made once a solve.
    Source: in place of four half-steps, what they come to for the relu, whose reflection is
      ``2 relu(u) - u = |u|``.
    """

    step: float = 1.0

    def __post_init__(self):
        _check_step(self)

    def update(self, product: Product, u: PyTree, x: dict[str, Any]) -> PyTree:
        size = jax.tree.map(jnp.abs, u)
        entering = jax.tree.map(lambda s, b: s + self.step * b, size, x["bias"])
        image = product(x["weights"], entering)
        return jax.tree.map(lambda v, s: 2.0 * v - s, image, size)


def _check_step(splitting: Any) -> None:
    if not splitting.step > 0:
        name = type(splitting).__name__
        raise ValueError(f"jdeq.layers.{name}: step must be > 0; got {splitting.step}")


def resolvent(weights: Array, step: float) -> Array:
    """``V = (I + a (I - W))^-1`` for matrices W in the last two axes."""
    wide = weights.astype(tree.accumulator(weights))  # LAPACK has no half precision
    eye = jnp.eye(weights.shape[-1], dtype=wide.dtype)
    return jnp.linalg.inv((1.0 + step) * eye - step * wide).astype(weights.dtype)


def monotone_matrix(a: Array, b: Array, margin: float) -> Array:
    """``W = (1 - m) I - A^H A + B - B^H`` for matrices in the last two axes."""
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    return (1.0 - margin) * eye - _adjoint(a) @ a + b - _adjoint(b)


def _adjoint(w: Array) -> Array:
    return jnp.conj(jnp.swapaxes(w, -1, -2))


def dense_product(w: Float[Array, "n n"], z: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    """``W z`` for every row z."""
    return z @ w.T


def transfer(
    kernel: Float[Array, "rows columns in out"], sides: tuple[int, int]
) -> Complex[Array, "height frequencies out in"]:
    """The matrices, one a frequency, of a circular convolution centred on its kernel.

    Raises:
      ValueError: if a side is shorter than the kernel's.
    """
    rows, columns = kernel.shape[:2]
    if sides[0] < rows or sides[1] < columns:
        raise ValueError(
            "jdeq.layers.transfer: sides must be at least those of the kernel, "
            f"{(rows, columns)}; got {sides}"
        )
    kernel = kernel.astype(tree.accumulator(kernel))  # a Fourier transform has no half precision
    padded = jnp.zeros((*sides, *kernel.shape[2:]), kernel.dtype)
    padded = padded.at[:rows, :columns].set(kernel)
    centred = jnp.roll(padded, (-(rows // 2), -(columns // 2)), axis=(0, 1))
    # Convolution layers correlate: what multiplies a frequency is the conjugate of the transform.
    return jnp.conj(jnp.swapaxes(jnp.fft.rfft2(centred, axes=(0, 1)), -1, -2))


def circular_product(
    w: Complex[Array, "height frequencies n n"], z: Float[Array, "batch height width n"]
) -> Float[Array, "batch height width n"]:
    """``W z`` for a circular convolution given by its `transfer` matrices."""
    spectrum = jnp.fft.rfft2(z.astype(tree.accumulator(z)), axes=(1, 2))
    spectrum = jnp.einsum("hwoi,bhwi->bhwo", w, spectrum)
    return jnp.fft.irfft2(spectrum, s=z.shape[1:3], axes=(1, 2)).astype(z.dtype)


def tiered_product(weights: dict[str, Any], z: tuple[Array, ...]) -> tuple[Array, ...]:
    """``W z`` for states at several scales, A and B block lower bidiagonal; zero padding.

    ``(A z)_j = conv(z_j) + conv(z_{j-1}, stride 2)``, 3x3, and so B.
    """
    apply_a = functools.partial(_bidiagonal, weights["a"])
    apply_b = functools.partial(_bidiagonal, weights["b"])
    image_a, image_b = apply_a(z), apply_b(z)
    (back_a,) = jax.linear_transpose(apply_a, z)(image_a)
    (back_b,) = jax.linear_transpose(apply_b, z)(z)
    keep = 1.0 - weights["margin"]
    return jax.tree.map(lambda z, aa, b, bt: keep * z - aa + b - bt, z, back_a, image_b, back_b)


def _bidiagonal(kernels: dict[str, tuple], z: tuple[Array, ...]) -> tuple[Array, ...]:
    padding = ((1, 1), (1, 1))
    out = [
        loop_conv(state, k, (1, 1), padding, dimension_numbers=_CHANNELS_LAST)
        for state, k in zip(z, kernels["same"], strict=True)
    ]
    for j, kernel in enumerate(kernels["down"]):
        below = loop_conv(z[j], kernel, (2, 2), padding, dimension_numbers=_CHANNELS_LAST)
        out[j + 1] = out[j + 1] + below
    return tuple(out)


_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
