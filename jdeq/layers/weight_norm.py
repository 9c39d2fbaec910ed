"""Linen Dense and Conv whose weight is split into a direction and a gain per output feature.

The published weight-norm DEQ code draws a weight and then normalises it away: what was asked for
and what the layer multiplies by differ. Here the gain starts at the norm of the drawn direction,
so the effective weight *is* the drawn one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jdeq.layers.convolution import loop_conv
from jdeq.layers.dropout import VariationalDropout

Initializer = Callable[..., jax.Array]


def _norm(v: Float[Array, "... out"]) -> Float[Array, " out"]:
    """Norm over all axes but the last, accumulated in float32 or wider."""
    wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    return jnp.sqrt(jnp.sum(jnp.square(wide), axis=tuple(range(v.ndim - 1))))


def weight_norm(v: Float[Array, "... out"], g: Float[Array, " out"]) -> Float[Array, "... out"]:
    """Effective weight ``w[..., o] = g[o] v[..., o] / ||v[..., o]||``.

    Args:
      v: direction, any rank >= 1; the last axis is the output dimension. No output may have a
        direction of zeros: it would be 0/0.
      g: gain, one per output.
    Returns:
      w, in the dtype of v; ``||w[..., o]|| = |g[o]|``, whatever the scale of v.
    Cost: one reduction and one product over v.
    Source: Salimans and Kingma (2016), Weight Normalization, eq. 2.
    """
    return v * (g / _norm(v)).astype(v.dtype)


def _weight(module: nn.Module, init: Initializer, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw ``direction``, set ``gain`` to its norms, return the effective weight."""
    v = module.param("direction", init, shape, dtype)
    g = module.param("gain", lambda key: _norm(v).astype(dtype))
    return weight_norm(v, g)


class WeightNormDense(nn.Module):
    """``y = x w + b`` with ``w[:, o] = gain[o] direction[:, o] / ||direction[:, o]||``.

    Parameters ``direction`` [in, features], ``gain`` [features] and ``bias`` [features]. The gain
    starts at ``||direction||``, so the effective weight has the distribution of ``kernel_init``.

    Args:
      features: size of the output's last axis.
      use_bias: whether to add ``b``.
      kernel_init: distribution of the effective weight; never all zeros for an output.
      bias_init: distribution of ``b``.
      drop_connect: rate, in [0, 1), of dropping single entries of w when a 'dropout' rng is given:
        one draw a call of the layer or of `weight`.
      dtype: of the computation; None: the promotion of input and parameters.
      param_dtype: of the parameters.
    Returns (of a call):
      float[..., features] from float[..., in].
    Source: Salimans and Kingma (2016), Weight Normalization, eq. 2. Deviation: no data-dependent
      initialisation. DropConnect: Wan et al. (2013), of the normalised weight as in Merity, Keskar,
      Socher (2018), Regularizing and Optimizing LSTM Language Models.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    drop_connect: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        x, w, b = promote_dtype(x, *self.weight(x.shape[-1]), dtype=self.dtype)
        y = x @ w
        return y if b is None else y + b

    @nn.compact
    def weight(self, inputs: int) -> tuple[Float[Array, "in out"], Float[Array, " out"] | None]:
        """The effective w [inputs, features], with DropConnect, and b: for who multiplies by them
        several times a call.
        """
        shape = (inputs, self.features)
        w = _weight(self, self.kernel_init, shape, self.param_dtype)
        w = VariationalDropout(self.drop_connect)(w)
        if not self.use_bias:
            return w, None
        return w, self.param("bias", self.bias_init, (self.features,), self.param_dtype)


class WeightNormConv(nn.Module):
    """Channels-last convolution with ``w[..., o] = gain[o] direction[..., o] / ||direction||``.

    Parameters ``direction`` [*kernel_size, in, features], ``gain`` [features] and ``bias``
    [features]. The gain starts at ``||direction[..., o]||``, so the effective weight has the
    distribution of ``kernel_init``.

    Args:
      features: number of output channels.
      kernel_size: one entry per spatial axis, 1 to 3 of them.
      strides: the stride of every spatial axis, >= 1.
      padding: as of ``flax.linen.Conv``: "SAME", "VALID" or a (low, high) pair per spatial axis.
      use_bias: whether to add a bias per output channel.
      kernel_init: distribution of the effective weight; never all zeros for an output.
      bias_init: distribution of the bias.
      dtype: of the computation; None: the promotion of input and parameters.
      param_dtype: of the parameters.
    Returns (of a call):
      float[batch, *spatial, features] from float[batch, *spatial, in].
    Raises:
      ValueError: when called, if the input has not one batch axis, the kernel's number of spatial
        axes and one channel axis.
    Source: Salimans and Kingma (2016), Weight Normalization, eq. 2. Deviation: no data-dependent
      initialisation.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial in"]) -> Float[Array, "batch *spatial2 out"]:
        rank = len(self.kernel_size)
        if x.ndim != rank + 2:
            raise ValueError(
                f"jdeq.layers.WeightNormConv: a kernel of {rank} spatial axes needs an input of "
                f"{rank + 2} axes [batch, *spatial, channels]; got shape {x.shape}"
            )
        shape = (*self.kernel_size, x.shape[-1], self.features)
        w = _weight(self, self.kernel_init, shape, self.param_dtype)
        b = None
        if self.use_bias:
            b = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, w, b = promote_dtype(x, w, b, dtype=self.dtype)
        spatial = "DHW"[-rank:]
        y = loop_conv(
            x,
            w,
            (self.strides,) * rank,
            self.padding,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )
        return y if b is None else y + b
