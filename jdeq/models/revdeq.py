"""Reversible DEQ image classifiers, channels last: stages ``x <- x + z*(x)`` of implicit ResNets.

    z* = f(z*, x),  f(z, x) = GN(relu(z + GN(x + conv(relu(GN(conv z))))))

Source: McCallum, Arora, Foster (2025), Reversible Deep Equilibrium Models, arXiv 2509.12917,
section 4.2 and appendix. Deviations: BatchNorm momentum 0.9; the single-scale model pools to 4x4
before its linear layer, which is what its printed parameter counts come to.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.gradients import ReversibleGradient
from jdeq.layers import loop_conv
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.image_parts import batch_norm, check_rank
from jdeq.solvers import Reversible
from jdeq.types import Solution, SolverStats

_Conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevDEQConfig:
    """What a reversible DEQ classifier is made of.

    Args:
      channels: width of each stage; neighbours are joined by a block of stride 2.
      expansions: the cell's first convolution widens by this factor, one per stage, >= 1.
      num_classes: of the logits, >= 1.
      pool: side of the feature map that is flattened and classified, >= 1.
      group_size: channels in a group of the GroupNorms; divides every width.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    channels: tuple[int, ...]
    expansions: tuple[int, ...]
    num_classes: int
    pool: int = 1
    group_size: int = 16

    def __post_init__(self):
        def require(holds: bool, name: str, rule: str):
            if not holds:
                raise ValueError(
                    f"jdeq.models.RevDEQConfig: {name} must {rule}; got {getattr(self, name)}"
                )

        require(len(self.channels) > 0, "channels", "name at least one stage")
        for name in ("num_classes", "pool", "group_size"):
            require(getattr(self, name) >= 1, name, "be >= 1")
        rule = f"be positive multiples of group_size ({self.group_size})"
        fits = all(width > 0 and width % self.group_size == 0 for width in self.channels)
        require(fits, "channels", rule)
        stages = len(self.channels)
        require(len(self.expansions) == stages, "expansions", f"have one entry a stage ({stages})")
        require(min(self.expansions) >= 1, "expansions", "be >= 1")


REVDEQ_CIFAR = RevDEQConfig(channels=(128, 256, 256, 128), expansions=(1, 3, 3, 1), num_classes=10)
"""CIFAR-10, four stages: 10.32M parameters; 94.4% in the paper with 4 steps a stage, beta 0.8."""

REVDEQ_SMALL = RevDEQConfig(channels=(32,), expansions=(1,), num_classes=10, pool=4)
"""One stage of width 32: 24.7K parameters."""


class RevDEQCell(nn.Module):
    """``GN(relu(z + GN(x + conv(relu(GN(conv z))))))``, 3x3 convolutions, expansion in between.

    Args (of a call):
      z, x: float[batch, height, width, features]; x is the injection.
    Returns:
      the shape and dtype of z.
    """

    features: int
    expansion: int
    group_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, z, x):
        norm = functools.partial(
            nn.GroupNorm,
            num_groups=None,
            group_size=self.group_size,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        conv = functools.partial(_Conv, dtype=self.dtype, conv_general_dilated=loop_conv)
        h = conv(self.expansion * self.features, name="conv1")(z)
        h = nn.relu(norm(name="norm1")(h))
        h = x + conv(self.features, name="conv2")(h)
        return norm(name="norm3")(nn.relu(z + norm(name="norm2")(h)))


class _Join(nn.Module):
    """Pre-activation residual block of stride 2: BN, ReLU, 3x3 (stride 2), BN, ReLU, 3x3."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(batch_norm, train, self.dtype)
        h = nn.relu(norm()(x))
        short = nn.Conv(self.features, (1, 1), strides=2, use_bias=False, dtype=self.dtype)(h)
        h = _Conv(self.features, strides=2, dtype=self.dtype)(h)
        return short + _Conv(self.features, dtype=self.dtype)(nn.relu(norm()(h)))


class RevDEQ(EquilibriumModel):
    """Implicit ResNet: conv-BN-ReLU stem, stages ``x <- x + z*(x)``, pool, linear.

    The cells are ordinary ones: any solver and rule of jdeq may take the place of the reversible
    pair. BatchNorm is outside the cells only: training needs ``mutable=['batch_stats']``.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``, for every
        stage.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      dtype: of the computation and the state; None: that of the parameters and images.
    """

    config: RevDEQConfig
    solver: Any = Reversible(beta=0.8)
    gradient: Any = ReversibleGradient()
    rtol: float = 1e-6
    max_steps: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits and the solves.

        Args:
          images: float[batch, height, width, colours]; after the stages the sides must be
            multiples of ``config.pool``.
          train: BatchNorm by the batch's statistics (and update the running ones).
          probe: see ``jdeq.backward_probe``; the stages' reports are added.
        Returns:
          logits float32[batch, num_classes]; a Solution with the states of all stages, the sum of
          their evaluations, the largest residual and the worst status.
        Raises:
          ValueError: for images of another rank, or whose sides do not fit.
        Cost: sol.stats.nfe evaluations of the cells.
        """
        config = self.config
        _check_sides(config, images.shape)
        x = _Conv(config.channels[0], dtype=self.dtype, name="stem")(images)
        x = nn.relu(batch_norm(train, self.dtype, name="stem_norm")(x))
        solutions = []
        for i, (width, expansion) in enumerate(
            zip(config.channels, config.expansions, strict=True)
        ):
            if i:
                x = _Join(width, self.dtype, name=f"join{i}")(x, train)
            deq = equilibrium_layer(
                self,
                RevDEQCell(width, expansion, config.group_size, self.dtype, parent=None),
                name=f"stage{i}",
            )
            solutions.append(deq(x, probe=probe))
            x = x + solutions[-1].z
        sides = x.shape[1] // config.pool, x.shape[2] // config.pool
        x = nn.avg_pool(x.astype(jnp.promote_types(x.dtype, jnp.float32)), sides, sides)
        logits = nn.Dense(config.num_classes, name="classify")(x.reshape(x.shape[0], -1))
        return logits, _together(solutions)


def _together(solutions: list[Solution]) -> Solution:
    nfe, residual, status = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(solution.stats for solution in solutions)
    )
    stats = SolverStats(jnp.sum(nfe, 0), jnp.max(residual, 0), jnp.max(status, 0))
    return Solution(tuple(solution.z for solution in solutions), stats, None)


def _check_sides(config: RevDEQConfig, shape: tuple[int, ...]) -> None:
    check_rank("jdeq.models.RevDEQ", shape)
    for axis, side in zip(("height", "width"), shape[1:3], strict=True):
        for _ in config.channels[1:]:
            side = -(-side // 2)
        if side % config.pool:
            raise ValueError(
                f"jdeq.models.RevDEQ: the {axis} of images must leave a multiple of pool="
                f"{config.pool} after {len(config.channels) - 1} halvings; got {shape}"
            )
