"""Norms of the residual and of f(z) whose squares may leave the range of floats."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from jdeq import tree

SURE = 2.0**30
"""How far norms may shrink in a step before their squares may be 0."""
_PLAIN = (2.0**-20, 2.0**50)  # norms whose squares are taken as they are


def measure(
    state: Any,
    ndim: int,
    scale: Float[Array, " *batch"] | None,
    scaled: Bool[Array, ""] | None = None,
) -> tuple[Array, Array, Array]:
    """Norms of the residual and of f(z), per sample, and a power of 2 that takes the larger one to
    where its square is a float; without gradient: they only decide.

    Squares of tiny and of huge entries leave the range of floats: the norms are those of entries
    times ``scale`` (None: 1), divided by it.

    Args:
      scaled: whether the scale of a sample that is running is not 1; None: unknown. Where none is,
        entries are left alone: a factor per sample costs a pass over the state on a CPU.
    """
    if scaled is not None:
        return lax.cond(
            scaled, lambda: measure(state, ndim, scale), lambda: measure(state, ndim, None)
        )
    z, fz = lax.stop_gradient((state.z, state.fz))
    residual = tree.subtract(fz, z)
    absolute, size = (
        tree.norm(a if scale is None else tree.scale(scale, _wide(a, scale.dtype)), ndim)
        for a in (residual, fz)
    )
    largest = jnp.maximum(absolute, size)
    inverse = jnp.ones_like(largest) if scale is None else _inverse(scale)
    absolute, size = absolute * inverse, size * inverse
    most, (low, high) = largest_scale(largest.dtype), _PLAIN
    # Small norms are taken to ``low`` only: what grows from there has room up to the largest float.
    power = _power_of_2(largest)
    unit = power * inverse
    unit = jnp.where(unit < low, unit / low, jnp.where(unit >= high, unit, 1.0))
    # Of a norm that is 0 or infinite only the direction is known.
    unit = jnp.where(power == 0, inverse / most, unit)
    unit = jnp.where(jnp.isfinite(largest), unit, inverse * most)
    # Divided last: XLA makes a division once, and what is before it again for each of its uses.
    return absolute, size, 1.0 / jnp.clip(unit, 1 / most, most)


def _power_of_2(a: Array) -> Array:
    """The largest power of 2 that is at most ``a`` (0 below the normal floats), by its bits: XLA
    takes a hundred operations for ``frexp`` and ``ldexp``.
    """
    info = jnp.finfo(a.dtype)
    mask = (1 << info.bits - 1) - (1 << info.nmant)
    bits = lax.bitcast_convert_type(a, jnp.dtype(f"uint{info.bits}"))
    return lax.bitcast_convert_type(bits & jnp.asarray(mask, bits.dtype), a.dtype)


def _inverse(power: Array) -> Array:
    """``1 / power`` of powers of 2 up to 2^126 (2^1022 in float64), by their bits."""
    info = jnp.finfo(power.dtype)
    bits = lax.bitcast_convert_type(power, jnp.dtype(f"uint{info.bits}"))
    one_twice = jnp.asarray(2 * (info.maxexp - 1) << info.nmant, bits.dtype)
    return lax.bitcast_convert_type(one_twice - bits, power.dtype)


def largest_scale(dtype: jnp.dtype) -> float:
    """Entries whose squares are 0 do not overflow after it."""
    return 2.0 ** (jnp.finfo(dtype).maxexp * 3 // 4)


def _wide(a: PyTree, dtype: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), a)
