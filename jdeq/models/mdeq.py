"""Multiscale deep equilibrium models (MDEQ), channels last: the cell, and the classifier.

    x = stem(images);  z* = f(z*, x) on all scales at once;  logits = head(z*)

The state is a tuple of feature maps, finest first, each scale half the side of the one before.
Source: Bai, Koltun and Kolter (2020), Multiscale Deep Equilibrium Models, arXiv 2006.08656,
section 3, and its published code. Where the two disagree this file follows the code.
Deviations: convolutions outside the weight-normalised ones start from ``lecun_normal`` instead of
N(0, 0.01) (all are followed by a normalisation, so only their learning speed differs); weights
that are normalised start with the *effective* distribution the code ends up with, the uniform one
of variance 1 / (3 fan_in).

Configurations and parameter counts: mdeq_config.py. Segmentation: mdeq_segmenter.py.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.layers import VariationalDropout, WeightNormConv, loop_conv
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.image_parts import batch_norm, check_rank
from jdeq.models.mdeq_config import MDEQBody, MDEQConfig
from jdeq.types import Solution

State = tuple[Float[Array, "batch height width channels"], ...]

_BOTTLENECK = 4  # the head's blocks widen by this factor
_cell_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_Norm = functools.partial(nn.GroupNorm, epsilon=1e-5)
_Conv = functools.partial(nn.Conv, padding=1)  # 3x3: stride 2 halves an even side


class _Block(nn.Module):
    """``GN(relu(z + GN(drop(conv(relu(GN(conv z)))) + injection)))`` at one scale."""

    features: int
    config: MDEQBody
    dtype: Any

    @nn.compact
    def __call__(self, z, injection):
        conv = functools.partial(
            WeightNormConv,
            kernel_size=(3, 3),
            use_bias=False,
            kernel_init=_cell_init,
            dtype=self.dtype,
        )
        norm = functools.partial(_Norm, num_groups=self.config.groups, dtype=self.dtype)
        y = conv(self.config.expansion * self.features, name="conv1")(z)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.features, name="conv2")(y)
        y = VariationalDropout(self.config.dropout, broadcast_dims=(1, 2))(y)
        if injection is not None:
            y = y + injection
        y = norm(name="norm2")(y) + z
        return norm(name="norm3")(nn.relu(y))


class MDEQCell(nn.Module):
    """The map ``z <- f(z, x)``: a residual block per scale, then every scale into every other.

    Down: 3x3 convolutions of stride 2, each with a GroupNorm, ReLU between them; up: 1x1
    convolution, GroupNorm, nearest neighbour. The sum goes through ReLU, 1x1 convolution and a
    GroupNorm, which bounds the state whatever the weights are. With one scale the block is all.
    There is no state outside ``params``: dropout is on when a 'dropout' rng is given.

    Args (of a call):
      z: float[batch, height / 2^i, width / 2^i, channels[i]] for each scale i.
      x: float[batch, height, width, channels[0]], injected at the finest scale only.
    Returns:
      a tuple of the shapes and dtype of z.
    """

    config: MDEQBody
    dtype: Any = None

    def initial_state(self, x: Float[Array, "batch height width channels"]) -> State:
        """Zeros of every scale, in the dtype of x.

        Raises:
          ValueError: if a side of x cannot be halved once per further scale.
        """
        _check_sides("jdeq.models.MDEQCell", "x", x.shape, len(self.config.channels) - 1)
        batch, height, width, _ = x.shape
        return tuple(
            jnp.zeros((batch, height >> i, width >> i, features), x.dtype)
            for i, features in enumerate(self.config.channels)
        )

    @nn.compact
    def __call__(self, z: State, x: Float[Array, "batch height width channels"]) -> State:
        channels = self.config.channels
        y = [
            _Block(features, self.config, self.dtype, name=f"block{i}")(z[i], None if i else x)
            for i, features in enumerate(channels)
        ]
        if len(channels) == 1:
            return tuple(y)
        fused = []
        for i, features in enumerate(channels):
            h = nn.relu(sum(self._transfer(y[j], j, i) for j in range(len(channels))))
            h = WeightNormConv(
                features,
                (1, 1),
                use_bias=False,
                kernel_init=_cell_init,
                dtype=self.dtype,
                name=f"post{i}_conv",
            )(h)
            affine = self.config.post_affine
            fused.append(
                _Norm(
                    num_groups=max(1, self.config.groups // 2),
                    use_bias=affine,
                    use_scale=affine,
                    dtype=self.dtype,
                    name=f"post{i}_norm",
                )(h)
            )
        return tuple(fused)

    def _transfer(self, y, source: int, target: int):
        """Features of scale ``source`` at the size and width of scale ``target``."""
        channels, name = self.config.channels, f"fuse{source}to{target}"
        norm = functools.partial(_Norm, num_groups=self.config.groups, dtype=self.dtype)
        conv = functools.partial(
            _Conv, use_bias=False, dtype=self.dtype, conv_general_dilated=loop_conv
        )
        for k in range(target - source):
            last = source + k + 1 == target
            y = conv(
                channels[target if last else source], (3, 3), strides=2, name=f"{name}_conv{k}"
            )(y)
            y = norm(name=f"{name}_norm{k}")(y)
            y = y if last else nn.relu(y)
        if source > target:
            y = conv(channels[target], (1, 1), padding=0, name=f"{name}_conv")(y)
            y = norm(name=f"{name}_norm")(y)
            factor = 2 ** (source - target)
            y = jnp.repeat(jnp.repeat(y, factor, axis=1), factor, axis=2)
        return y


class _Stem(nn.Module):
    """3x3 conv-BN-ReLU at least twice, stride 2 on the first ``downsamples``; 1x1 conv-BN-ReLU.

    The 1x1 is left out with at most two scales and no downsampling, as in the published code.
    """

    config: MDEQBody
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        features, downsamples = self.config.channels[0], self.config.downsamples
        norm = functools.partial(batch_norm, train, self.dtype)
        conv = functools.partial(_Conv, use_bias=False, dtype=self.dtype)
        for k in range(max(2, downsamples)):
            x = conv(features, (3, 3), strides=2 if k < downsamples else 1)(x)
            x = nn.relu(norm()(x))
        if downsamples > 0 or len(self.config.channels) > 2:
            x = nn.relu(norm()(conv(features, (1, 1), padding=0)(x)))
        return x


class _Head(nn.Module):
    """Bottleneck per scale, added up from fine to coarse, 1x1 conv-BN-ReLU, mean pool, linear."""

    config: MDEQConfig
    dtype: Any

    @nn.compact
    def __call__(self, z, train):
        norm = functools.partial(batch_norm, train, self.dtype)
        conv = functools.partial(_Conv, dtype=self.dtype)
        y = None
        for z_i, width in zip(z, self.config.head_channels, strict=True):
            block = _Bottleneck(width, self.dtype)(z_i, train)
            if y is not None:
                down = conv(_BOTTLENECK * width, (3, 3), strides=2)(y)
                block = block + nn.relu(norm()(down))
            y = block
        y = nn.relu(norm()(conv(self.config.head_features, (1, 1), padding=0)(y)))
        y = jnp.mean(y.astype(jnp.promote_types(y.dtype, jnp.float32)), axis=(1, 2))
        return nn.Dense(self.config.num_classes)(y)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with BatchNorm (no affine parameters), residual, 4x wider."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        out = _BOTTLENECK * self.features
        norm = functools.partial(batch_norm, train, self.dtype)
        plain = functools.partial(norm, affine=False)
        conv = functools.partial(_Conv, use_bias=False, dtype=self.dtype)
        y = nn.relu(plain()(conv(self.features, (1, 1), padding=0)(x)))
        y = nn.relu(plain()(conv(self.features, (3, 3))(y)))
        y = plain()(conv(out, (1, 1), padding=0)(y))
        if x.shape[-1] != out:
            x = norm()(conv(out, (1, 1), padding=0)(x))
        return nn.relu(y + x)


class MDEQ(EquilibriumModel):
    """Multiscale DEQ classifier: ``logits = head(z*)``, ``z* = cell(z*, stem(images))``.

    BatchNorm is in the stem and the head only: training needs ``mutable=['batch_stats']``.
    Pre-training by a few weight-tied layers, as the paper does it: the same variables through
    ``model.clone(solver=Picard(), gradient=Unrolled(), max_steps=layers)``.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      dtype: of the computation and the state (jnp.bfloat16, say); None: that of the parameters
        and images. Parameters and logits are float32.
    """

    config: MDEQConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits and the equilibrium solve.

        Args:
          images: float[batch, height, width, colours], the sides divisible by
            2^(downsamples + scales - 1).
          train: BatchNorm by the batch's statistics (and update the running ones).
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, num_classes]; the Solution, whose z is the tuple of scales.
        Raises:
          ValueError: if a side of the images is not divisible as above.
        Cost: sol.stats.nfe evaluations of the cell.
        """
        sol = equilibrium(self, images, train, probe)
        return _Head(self.config, self.dtype, name="head")(sol.z, train), sol


def equilibrium(model: Any, images: Array, train: bool, probe: Any) -> Solution:
    """The stem and the solve of a model that has the options of `MDEQ`, among its submodules.

    Raises:
      ValueError: if images have another rank, or a side that is not divisible.
    """
    config = model.config
    halvings = config.downsamples + len(config.channels) - 1
    _check_sides(f"jdeq.models.{type(model).__name__}", "images", images.shape, halvings)
    x = _Stem(config, model.dtype, name="stem")(images, train)
    return equilibrium_layer(model, MDEQCell(config, model.dtype, parent=None), name="deq")(
        x, probe=probe
    )


def _check_sides(who: str, name: str, shape: tuple[int, ...], halvings: int) -> None:
    check_rank(who, shape, name)
    for axis, side in zip(("height", "width"), shape[1:3], strict=True):
        if side % 2**halvings:
            raise ValueError(
                f"{who}: the {axis} of {name} must be divisible by {2**halvings} "
                f"(it is halved {halvings} times); got {side}"
            )
