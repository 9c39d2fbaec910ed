"""Learning-rate schedules and optimisers of the recipes, from optax's parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """0 to ``peak`` in a line over ``warmup_steps``, then a half cosine to 0 at ``total_steps``.

    Args:
      peak: the largest learning rate, > 0 and finite.
      warmup_steps: in 0..total_steps - 1.
      total_steps: the length of the run.
    Raises:
      ValueError: if a range is broken.
    """
    _check_peak("warmup_cosine", peak)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "jdeq.training.warmup_cosine: warmup_steps must be in 0..total_steps - 1 = "
            f"{total_steps - 1}; got {warmup_steps}"
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def warmup_constant(*, peak: float, warmup_steps: int) -> optax.Schedule:
    """0 to ``peak`` in a line over ``warmup_steps``, then ``peak``.

    Args:
      peak: the largest learning rate, > 0 and finite.
      warmup_steps: >= 0.
    Raises:
      ValueError: if a range is broken.
    """
    _check_peak("warmup_constant", peak)
    if warmup_steps < 0:
        raise ValueError(
            f"jdeq.training.warmup_constant: warmup_steps must be >= 0; got {warmup_steps}"
        )
    # optax's own warmup_constant_schedule stays at 0 for ever if there is no warm-up.
    parts = optax.linear_schedule(0.0, peak, warmup_steps), optax.constant_schedule(peak)
    return optax.join_schedules(parts, [warmup_steps])


def warmup_steps_decay(
    *, peak: float, warmup_steps: int, every: int, factor: float
) -> optax.Schedule:
    """0 to ``peak`` in a line over ``warmup_steps``; times ``factor`` every ``every`` steps, from
    step 0 on.

    Args:
      peak: the largest learning rate, > 0 and finite.
      warmup_steps: >= 0.
      every: >= 1.
      factor: in (0, 1).
    Raises:
      ValueError: if a range is broken.
    """
    who = "jdeq.training.warmup_steps_decay"
    if every < 1:
        raise ValueError(f"{who}: every must be >= 1; got {every}")
    if not 0 < factor < 1:
        raise ValueError(f"{who}: factor must lie in (0, 1); got {factor}")
    _check_peak("warmup_steps_decay", peak)
    if warmup_steps < 0:
        raise ValueError(f"{who}: warmup_steps must be >= 0; got {warmup_steps}")
    constant = warmup_constant(peak=peak, warmup_steps=warmup_steps)
    stairs = optax.exponential_decay(1.0, every, factor, staircase=True)
    return lambda step: jnp.asarray(constant(step)) * stairs(step)


def _check_peak(schedule: str, peak: float) -> None:
    if not 0 < peak < math.inf:
        raise ValueError(f"jdeq.training.{schedule}: peak must be > 0 and finite; got {peak}")


def adamw(
    schedule: optax.Schedule, *, weight_decay: float = 0.0, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels; gradients first clipped by their global norm.

    Args:
      schedule: learning rate by step.
      weight_decay: >= 0 and finite, of every leaf of two axes or more: kernels and directions, but
        tables of embeddings and positions too, and biases that have an axis for each head. Leaves
        of fewer axes (biases, scales, gains) are left out.
      clip_norm: the largest global gradient norm; None does not clip.
    Raises:
      ValueError: if ``weight_decay`` or ``clip_norm`` lies outside its range.
    Source: Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.
    """
    _check_decay("adamw", weight_decay)

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    update = optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)
    return _clipped("adamw", update, clip_norm)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Gradient descent with momentum, ``m <- momentum m + g + weight_decay p``.

    Args:
      schedule: learning rate by step.
      momentum: in [0, 1).
      nesterov: take ``momentum m + g`` with the new m for the step, not m.
      weight_decay: >= 0 and finite, added to the gradient of every parameter, as the published
        scripts do.
      clip_norm: the largest global gradient norm; None does not clip.
    Raises:
      ValueError: if ``momentum``, ``weight_decay`` or ``clip_norm`` lies outside its range.
    Source: Sutskever, Martens, Dahl and Hinton (2013), On the Importance of Initialization and
      Momentum in Deep Learning.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"jdeq.training.sgd: momentum must lie in [0, 1); got {momentum}")
    _check_decay("sgd", weight_decay)
    update = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
    return _clipped("sgd", update, clip_norm)


def _check_decay(optimizer: str, weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(
            f"jdeq.training.{optimizer}: weight_decay must be >= 0 and finite; got {weight_decay}"
        )


def _clipped(
    optimizer: str, update: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
    if clip_norm is None:
        return update
    if not clip_norm > 0:
        raise ValueError(
            f"jdeq.training.{optimizer}: clip_norm must be > 0 or None; got {clip_norm}"
        )
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)
