"""The running average of the parameters, kept by the optimiser."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

PyTree = Any


class ParameterAverage(NamedTuple):
    """State of `average_parameters`; as part of the optimiser's it is saved and sharded with it."""

    calls: Int[Array, ""]
    average: PyTree  # like the parameters


def average_parameters(decay: float, *, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """``average <- d average + (1 - d) params`` after each update; the last of a chain.

    Debiased as in Adam, by d = (decay - decay^n) / (1 - decay^n) at the n-th update: the average is
    that of the parameters after updates 1..n with weights proportional to ``decay^(n - i)``. The
    random initial ones have no share, and it can be used from the first update on.

    Args:
      decay: in (0, 1); about the last ``1 / (1 - decay)`` updates count.
      every: calls to an update, >= 1: those of ``optax.MultiSteps`` before it in the chain.
    Raises:
      ValueError: if ``decay`` or ``every`` lies outside its range; when updating, without params.
    Cost: one copy of the parameters.
    Source: Polyak and Juditsky (1992), Acceleration of Stochastic Approximation by Averaging; the
      debiasing of Kingma and Ba (2015), Adam, section 3. Deviation: it is part of the recursion,
      so that what is kept is always an average.
    """
    if not 0 < decay < 1:
        raise ValueError(f"jdeq.training.average_parameters: decay must lie in (0, 1); got {decay}")
    if every < 1:
        raise ValueError(f"jdeq.training.average_parameters: every must be >= 1; got {every}")

    def init(params: PyTree) -> ParameterAverage:
        # Copied: a step donates its state, and a buffer cannot be donated twice.
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state: Any, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(
                "jdeq.training.average_parameters: params must be given to update; got None"
            )
        calls = state.calls + 1
        # 1 - d = (1 - decay) / (1 - decay^n), whose float32 needs expm1 for a decay close to 1
        share = (1 - decay) / -jnp.expm1(calls // every * math.log(decay))
        share = jnp.where(calls % every == 0, share, 0.0)
        average = jax.tree.map(
            lambda old, new: old + share.astype(old.dtype) * (new - old),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, ParameterAverage(calls, average)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged_params(opt_state: optax.OptState) -> PyTree | None:
    """The average that `average_parameters` keeps in the state of an optimiser, or None."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, ParameterAverage))
    found = [part.average for part in parts if isinstance(part, ParameterAverage)]
    return found[0] if found else None
