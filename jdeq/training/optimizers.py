"""Learning-rate schedules and optimisers of the recipes, from optax's parts."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
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


def one_cycle(*, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """``peak / 25`` to ``peak`` in half a cosine over ``warmup_steps``, then another half down to
    ``peak / 250000`` at ``total_steps``.

    Args:
      peak: the largest learning rate, > 0 and finite; more than a constant rate could be.
      warmup_steps: in 1..total_steps - 1; about 0.3 of them is usual.
      total_steps: the length of the run.
    Raises:
      ValueError: if a range is broken.
    Source: Smith and Topin (2019), Super-Convergence: Very Fast Training of Neural Networks Using
      Large Learning Rates. Deviation: the momentum stays as it is.
    """
    _check_peak("one_cycle", peak)
    if not 1 <= warmup_steps < total_steps:
        raise ValueError(
            f"jdeq.training.one_cycle: warmup_steps must be in 1..total_steps - 1 = "
            f"{total_steps - 1}; got {warmup_steps}"
        )
    # optax takes a share of the steps and rounds down: the half keeps it at warmup_steps.
    return optax.cosine_onecycle_schedule(total_steps, peak, (warmup_steps + 0.5) / total_steps)


def _check_peak(schedule: str, peak: float) -> None:
    if not 0 < peak < math.inf:
        raise ValueError(f"jdeq.training.{schedule}: peak must be > 0 and finite; got {peak}")


def adamw(
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay on kernels; gradients first clipped by their global norm.

    Args:
      schedule: learning rate by step.
      weight_decay: >= 0 and finite, of every leaf of two axes or more: kernels and directions, but
        tables of embeddings and positions too, and biases that have an axis for each head. Leaves
        of fewer axes (biases, scales, gains) are left out.
      no_decay: regular expressions; a parameter is left out too if one is found in its path, such
        as "cell/Dense_0/kernel".
      clip_norm: the largest global gradient norm; None does not clip.
    Raises:
      ValueError: if ``weight_decay`` or ``clip_norm`` lies outside its range or ``no_decay`` is no
        regular expression; when initialised, if one of them is found nowhere.
    Source: Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.
    """
    _check_decay("adamw", weight_decay)
    mask = _decayed("adamw", no_decay, least_axes=2)
    update = optax.adamw(schedule, weight_decay=weight_decay, mask=mask)
    return _clipped("adamw", update, clip_norm)


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Gradient descent with momentum, ``m <- momentum m + g + weight_decay p``.

    Args:
      schedule: learning rate by step.
      momentum: in [0, 1).
      nesterov: take ``momentum m + g`` with the new m for the step, not m.
      weight_decay: >= 0 and finite, added to the gradient of every parameter, as the published
        scripts do.
      no_decay: as of `adamw`.
      clip_norm: the largest global gradient norm; None does not clip.
    Raises:
      ValueError: if ``momentum``, ``weight_decay`` or ``clip_norm`` lies outside its range, and for
        ``no_decay`` as `adamw`.
    Source: Sutskever, Martens, Dahl and Hinton (2013), On the Importance of Initialization and
      Momentum in Deep Learning.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"jdeq.training.sgd: momentum must lie in [0, 1); got {momentum}")
    _check_decay("sgd", weight_decay)
    # Without a mask the state stays as it was in earlier checkpoints.
    mask = _decayed("sgd", no_decay, least_axes=0) if no_decay else None
    update = optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )
    return _clipped("sgd", update, clip_norm)


def _check_decay(optimizer: str, weight_decay: float) -> None:
    if not 0 <= weight_decay < math.inf:
        raise ValueError(
            f"jdeq.training.{optimizer}: weight_decay must be >= 0 and finite; got {weight_decay}"
        )


def _decayed(optimizer: str, no_decay: Sequence[str], *, least_axes: int) -> Callable[[Any], Any]:
    """Of parameters, which decay."""
    who = f"jdeq.training.{optimizer}"
    try:
        expressions = [re.compile(expression) for expression in no_decay]
    except re.error as error:
        raise ValueError(
            f"{who}: no_decay must be regular expressions; got {no_decay}: {error}"
        ) from error

    def mask(params: Any) -> Any:
        paths = jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
        )
        names = jax.tree.leaves(paths)
        for expression in expressions:
            if not any(map(expression.search, names)):
                near = difflib.get_close_matches(expression.pattern, names, n=5, cutoff=0.0)
                raise ValueError(
                    f"{who}: no_decay must be found in the path of a parameter; got "
                    f"{expression.pattern!r}, and paths are {', '.join(near)}"
                    + (", ..." if len(names) > len(near) else "")
                )
        return jax.tree.map(
            lambda leaf, name: (
                leaf.ndim >= least_axes
                and not any(expression.search(name) for expression in expressions)
            ),
            params,
            paths,
        )

    return mask


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
