"""What does not work, to be measured beside what does: a penalty that bounds no eigenvalue, and an
estimator of the spectral radius that is wrong for complex ones.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from jdeq import tree
from jdeq.types import ParamMap, require_integer


def column_sum_penalty(
    f: ParamMap,
    params: PyTree,
    z: PyTree,
    x: PyTree,
    key: Key[Array, ""] | None = None,
    *,
    level: float = 0.9,
    batch_ndim: int = 1,
) -> Float[Array, " *batch"]:
    """``mean_i max(0, (1^T J)_i - level)^2`` of ``J = df/dz`` per sample: of column sums that are
    too large.

    Meant to bound the 1-norm of J, which it does not: entries of both signs cancel. It is 0 on
    [[2, -2], [-2, 2]], which has an eigenvalue of 4. The gradient reaches params (and x) at fixed
    z, as that of `jdeq.jacobian_penalty`.

    Args:
      f: the map ``f(params, z, x) -> z``.
      z: state to linearize at; float[*batch, ...] leaves.
      key: nothing is drawn.
      level: what a column may sum up to.
      batch_ndim: number of sample axes, >= 0.
    Returns:
      one value per sample, float32 or wider.
    Cost: one evaluation of f and one transposed product; its gradient about as much again.
    Source: Linsley, Ashok, Govindarajan, Liu, Serre (2020), Stable and expressive recurrent vision
      models, NeurIPS, section 3 and code (level 0.9, squares); the counterexample is that of Bai,
      Koltun, Kolter (2021), section 2.2. Deviation: the mean over columns in place of a norm, so
      that weights compare with those of the Jacobian penalty.
    """
    del key
    z = lax.stop_gradient(z)
    fz, pullback = jax.vjp(lambda z: tree.cast_like(f(params, z, x), z), z)
    (sums,) = pullback(jax.tree.map(jnp.ones_like, fz))
    excess = jax.tree.map(lambda s: jnp.maximum(s - level, 0), sums)
    return tree.dot(excess, excess, batch_ndim) / tree.sample_size(z, batch_ndim)


def rayleigh_quotient(
    f: ParamMap,
    params: PyTree,
    z: PyTree,
    x: PyTree,
    key: Key[Array, ""],
    *,
    num_products: int = 200,
    batch_ndim: int = 1,
) -> Float[Array, " *batch"]:
    """``|v^T J v| / v^T v`` of ``J = df/dz`` per sample, v the last but one of ``num_products``
    power steps with J^T: the published estimate of the spectral radius.

    Right where the largest eigenvalue is real and alone. Where it is one of a complex pair v turns
    for ever, and the quotient with it: for 0.9 times a rotation by 1 rad it is 0.49 at every step.
    `jdeq.spectral_radius` is right for both.

    Args:
      f: the map ``f(params, z, x) -> z``.
      z: state to linearize at; float[*batch, ...] leaves.
      key: random key, of the start vectors.
      num_products: >= 1; 200 as published.
      batch_ndim: number of sample axes, >= 0.
    Returns:
      one value per sample, float32 or wider. A constant for differentiation.
    Raises:
      ValueError: if ``num_products`` is no integer >= 1.
    Cost: one evaluation of f and ``num_products`` transposed products.
    Source: Bai, Koltun, Kolter (2021), section 5.4 and code (power_method).
    """
    require_integer("rayleigh_quotient", "num_products", num_products, 1)
    params, z, x = lax.stop_gradient((params, z, x))
    _, pullback = jax.vjp(lambda z: tree.cast_like(f(params, z, x), z), z)

    def step(v: PyTree, _: None) -> tuple[PyTree, Array]:
        (w,) = pullback(v)
        size = tree.dot(v, v, batch_ndim)
        quotient = tree.dot(w, v, batch_ndim) / jnp.where(size == 0, 1.0, size)
        norm = tree.norm(w, batch_ndim)
        return tree.scale(1 / jnp.where(norm == 0, 1.0, norm), w), quotient

    _, quotients = lax.scan(step, tree.normal_like(key, z), None, length=num_products)
    return jnp.abs(quotients[-1])
