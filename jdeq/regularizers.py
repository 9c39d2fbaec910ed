"""Regularizers of a deep equilibrium model: the Jacobian penalty and fixed-point correction."""

import dataclasses
import math
import random
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from jdeq import tree
from jdeq.types import ParamMap, require_integer


def jacobian_penalty(
    f: ParamMap,
    params: PyTree,
    z: PyTree,
    x: PyTree,
    key: Key[Array, ""],
    *,
    num_probes: int = 1,
    batch_ndim: int = 1,
) -> Float[Array, " *batch"]:
    """Hutchinson estimate of ``||J_f(z)||_F^2 / d`` per sample: mean of ``||eps^T J||^2 / d``, eps
    ~ N(0, I).

    Unbiased. The gradient reaches params (and x) at fixed z, which is treated as a constant.

    Args:
      f: the map ``f(params, z, x) -> z``.
      z: state to linearize at, normally ``solution.z``; float[*batch, ...] leaves.
      key: random key; one set of probes for the whole batch of states.
      num_probes: M >= 1.
      batch_ndim: number of sample axes, >= 0.
    Returns:
      one value per sample, float32 or wider; d is the number of entries of one sample.
    Raises:
      ValueError: if ``num_probes`` is not an integer >= 1.
    Cost: one evaluation of f and M transposed products; its gradient M jvps and M pullbacks of
      those products into params more. Measured for M = 1 on a DEQ-Transformer: the time of 2
      transposed products, with the gradient 6, in a training step, which shares the evaluation, 3.5
      to 4.7.
    Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
      eq. 3-4; Hutchinson (1989).
    """
    require_integer("jdeq.jacobian_penalty", "num_probes", num_probes, 1)
    z = lax.stop_gradient(z)
    fz, pullback = jax.vjp(lambda z: tree.cast_like(f(params, z, x), z), z)
    axes = tree.varying_axes(fz)

    def estimate(key: Array) -> Array:
        (product,) = pullback(tree.vary(tree.normal_like(key, z), axes))
        return tree.dot(product, product, batch_ndim)

    total = sum((estimate(k) for k in jax.random.split(key, num_probes)), jnp.zeros(()))
    return total / (num_probes * tree.sample_size(z, batch_ndim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class JacobianSchedule:
    """When and how strongly to apply the Jacobian penalty: with probability p, and growing.

    Decided on the host from (seed, step) alone, so that a run can be resumed anywhere; ``active``
    is meant as a static argument of the train step, ``weight_at`` as a traced one.

    Args:
      weight: gamma at ``start``, >= 0.
      probability: p in [0, 1], share of steps with the penalty.
      growth: added to gamma every ``growth_every`` steps after ``start``, >= 0.
      growth_every: K >= 1 where ``growth`` > 0.
      start, stop: first step with the penalty, and the first one without again (None: never).
      seed: of the draws.
    Raises:
      ValueError: when built, for values outside these ranges.
    Source: Bai, Koltun, Kolter (2021), section 5 and table 4.
    """

    weight: float
    probability: float = 1.0
    growth: float = 0.0
    growth_every: int = 0
    start: int = 0
    stop: int | None = None
    seed: int = 0

    def __post_init__(self):
        name = "jdeq.JacobianSchedule"
        for field in ("weight", "growth"):
            value = getattr(self, field)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}: {field} must be finite and >= 0; got {value}")
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"{name}: probability must lie in [0, 1]; got {self.probability}")
        if self.growth > 0 and self.growth_every < 1:
            raise ValueError(
                f"{name}: growth_every must be >= 1 where growth > 0; got {self.growth_every}"
            )
        if self.start < 0:
            raise ValueError(f"{name}: start must be >= 0; got {self.start}")
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"{name}: stop must be >= start={self.start}; got {self.stop}")

    def active(self, step: int) -> bool:
        """Whether the penalty is applied at ``step``: tau ~ Bernoulli(p) between start and stop."""
        if self.weight_at(step) == 0.0:
            return False
        return random.Random(f"{self.seed}/{step}").random() < self.probability

    def weight_at(self, step: int) -> float:
        """gamma at ``step``: ``weight + growth * floor((step - start) / growth_every)``, else 0."""
        if step < self.start or (self.stop is not None and step >= self.stop):
            return 0.0
        rises = (step - self.start) // self.growth_every if self.growth > 0 else 0
        return self.weight + self.growth * rises


def fixed_point_correction(
    f: ParamMap,
    params: PyTree,
    z0: PyTree,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    *,
    steps: int,
    every: int = 1,
    decay: float = 0.8,
) -> Float[Array, ""]:
    """Loss on intermediate states, ``sum_k decay^(K - k) loss(z_k)`` over states of a Picard
    iteration.

    Each chosen state is a constant from which one step of f is taken,
    ``loss(f(stop_gradient(z_k)))``, so memory does not grow with the number of steps. It trains
    the map to be useful on the way.

    Args:
      f, params, z0, x: as in :func:`jdeq.fixed_point`.
      loss: scalar loss of a state.
      steps: evaluations of f, >= 1.
      every: a loss at every ``every``-th state and the last, >= 1.
      decay: in (0, 1], weight of each earlier loss relative to the next.
    Raises:
      ValueError: for values outside these ranges.
    Cost: ``steps`` evaluations of f; as many pullbacks as losses.
    Source: Bai, Geng, Savani, Kolter (2022), Deep Equilibrium Optical Flow Estimation, CVPR,
      section 4.2 (sparse fixed-point correction). Deviation: decay by position in the list of
      losses.
    """
    name = "jdeq.fixed_point_correction"
    if steps < 1 or every < 1:
        raise ValueError(f"{name}: steps and every must be >= 1; got {steps} and {every}")
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"{name}: decay must lie in (0, 1]; got {decay}")
    z = z0
    losses = []
    for k in range(1, steps + 1):
        z = f(params, lax.stop_gradient(z), x)
        if k == steps or k % every == 0:
            losses.append(loss(z))
    weights = [decay ** (len(losses) - 1 - i) for i in range(len(losses))]
    return sum((w * value for w, value in zip(weights, losses, strict=True)), jnp.zeros(()))
