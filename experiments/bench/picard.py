"""The reference of every ratio: what a careful user writes by hand."""

from functools import partial

import jax
import jax.numpy as jnp


def _squared(z):
    """float32[batch]: over all leaves of the state."""
    return sum(jnp.sum(a**2, tuple(range(1, a.ndim))) for a in jax.tree.leaves(z))


def _iterate(g, z, rtol, max_steps):
    def unfinished(carry):
        z, gz, steps = carry
        error = _squared(jax.tree.map(jnp.subtract, gz, z))
        return (steps < max_steps) & jnp.any(error > rtol**2 * _squared(gz))

    _, z, _ = jax.lax.while_loop(unfinished, lambda c: (c[1], g(c[1]), c[2] + 1), (z, g(z), 1))
    return z


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def picard(f, params, z0, x, rtol, max_steps):
    """z <- f(params, z, x) until the worst sample has ||f(z) - z|| <= rtol ||f(z)||."""
    return _iterate(lambda z: f(params, z, x), z0, rtol, max_steps)


def _forward(f, params, z0, x, rtol, max_steps):
    z = picard(f, params, z0, x, rtol, max_steps)
    return z, (params, z, x)


def _backward(f, rtol, max_steps, saved, cotangent):
    params, z, x = saved
    _, product = jax.vjp(lambda z: f(params, z, x), z)

    def step(v):
        return jax.tree.map(jnp.add, cotangent, product(v)[0])

    v = _iterate(step, cotangent, rtol, max_steps)
    _, pull = jax.vjp(lambda params, x: f(params, z, x), params, x)
    params_bar, x_bar = pull(v)
    return params_bar, jax.tree.map(jnp.zeros_like, z), x_bar


picard.defvjp(_forward, _backward)
