"""Convolution for the body of a loop."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def loop_conv(
    lhs: Float[Array, "batch *spatial in"],
    rhs: Float[Array, "*kernel in out"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "batch *spatial2 out"]:
    """``lax.conv_general_dilated``, on a CPU as one matrix product over patches.

    XLA for CPU brings convolutions into the form its fast kernels take only outside of loops
    (jax 0.10 to 0.12). The transposed convolution in the loop of an adjoint solve misses it:
    20 ms instead of 0.8 ms a product for 3x3 convolutions 16-32-16 on [128, 8, 8, 16]. The
    product over patches has no such gap. It is used where the default backend is a CPU (or the
    program is made for one, see `made_for`), the layout channels last, with neither dilation nor
    feature groups; everything else is passed on.

    Fits the ``conv_general_dilated`` field of ``flax.linen.Conv``; its arguments are the same.

    Returns:
      The convolution, equal to that of ``lax`` up to rounding.
    Cost: on a CPU, one copy of ``lhs`` per entry of the kernel.
    """
    rank = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = tuple(range(1, rank + 1))
    channels_last = lax.ConvDimensionNumbers(
        (0, rank + 1, *spatial), (rank + 1, rank, *range(rank)), (0, rank + 1, *spatial)
    )
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    other = numbers != channels_last or dilated or feature_group_count != 1
    platforms = set(_platforms.get() or (jax.default_backend(),))

    taken = {"window_strides": window_strides, "padding": padding, "precision": precision}
    native = functools.partial(
        lax.conv_general_dilated,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        **taken,
    )
    patches = functools.partial(_by_patches, **taken)
    if other or "cpu" not in platforms:
        return native(lhs, rhs)
    if platforms == {"cpu"}:
        return patches(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=patches, default=native)


_platforms: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "platforms", default=()
)


@contextlib.contextmanager
def made_for(platforms: Sequence[str]) -> Iterator[None]:
    """What is traced inside will run on these platforms, "cpu", "cuda", ...: by `jax.export`."""
    token = _platforms.set(tuple(platforms))
    try:
        yield
    finally:
        _platforms.reset(token)


def _by_patches(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, precision: Any
) -> Array:
    rank = lhs.ndim - 2
    kernel, sides = rhs.shape[:rank], lhs.shape[1:-1]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(sides, kernel, window_strides, padding)
    lhs = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    strides = (1, *window_strides, 1)
    ends = [n - k + 1 for n, k in zip(lhs.shape[1:-1], kernel, strict=True)]
    patches = []
    for at in itertools.product(*map(range, kernel)):
        stop = [start + end for start, end in zip(at, ends, strict=True)]
        patches.append(lax.slice(lhs, (0, *at, 0), (lhs.shape[0], *stop, lhs.shape[-1]), strides))
    return jnp.matmul(
        jnp.concatenate(patches, axis=-1), rhs.reshape(-1, rhs.shape[-1]), precision=precision
    )
