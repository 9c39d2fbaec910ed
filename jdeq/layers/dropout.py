"""Dropout with one mask per call: inside an equilibrium solve, the same at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class VariationalDropout(nn.Module):
    """``y = m x / (1 - rate)``, ``m`` ~ Bernoulli(1 - rate), active when a 'dropout' rng is given.

    The mask is a function of the rng alone. ``jdeq.linen.DEQ`` applies its cell with the same rngs
    at every evaluation, forward and backward, so the map that is solved stays one fixed map.
    There is no train flag: ``apply(..., rngs={'dropout': key})`` drops, ``apply(...)`` does not.

    Args:
      rate: probability of dropping, in [0, 1).
      broadcast_dims: axes that share one draw; (1, 2) drops whole channels of NHWC, (1,) whole
        features of a [batch, time, features] sequence. Negative axes count from the end.
    Returns (of a call):
      y, of the shape and dtype of x.
    Raises:
      ValueError: when built, if ``rate`` lies outside [0, 1); when called, if an axis in
        ``broadcast_dims`` is not one of x.
    Cost: one draw of the mask (of the size left after broadcasting) and one product a call.
    Source: Gal and Ghahramani (2016), A Theoretically Grounded Application of Dropout in RNNs,
      section 4; whole channels as in the MDEQ code (Bai, Koltun and Kolter 2020).
    """

    rate: float
    broadcast_dims: Sequence[int] = ()

    def __post_init__(self):
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(
                f"jdeq.layers.VariationalDropout: rate must lie in [0, 1); got {self.rate}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if any(not -x.ndim <= axis < x.ndim for axis in self.broadcast_dims):
            raise ValueError(
                "jdeq.layers.VariationalDropout: broadcast_dims must be axes of the input; got "
                f"{tuple(self.broadcast_dims)} for shape {x.shape}"
            )
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        shared = {axis % x.ndim for axis in self.broadcast_dims}
        shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))
