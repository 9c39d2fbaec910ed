"""The smallest DEQ there is: one number in, one number out, a state of one number.

    y = z*(x),  z* = f(z*; x),  f(z; x) = W_2^T relu(W_1 z + U x + b)

Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
section 5.1. The paper does not say how the weights start; here as PyTorch, its framework, starts
linear layers: uniform within 1 / sqrt(inputs).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.types import Solution, require_integer

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)  # as U, of one input


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarDEQConfig:
    """What a `ScalarDEQ` is made of.

    Args:
      hidden: units of f, >= 1; four parameters each.
    Raises:
      ValueError: when built, for a value outside this range.
    """

    hidden: int = 50

    def __post_init__(self):
        require_integer("jdeq.models.ScalarDEQConfig", "hidden", self.hidden, 1)


class ScalarCell(nn.Module):
    """``W_2^T relu(W_1 z + U x + b)``.

    Args (of a call):
      z, x: float[batch, 1].
    Returns:
      the shape of z.
    """

    config: ScalarDEQConfig

    @nn.compact
    def __call__(self, z, x):
        hidden = self.config.hidden
        up = nn.Dense(hidden, use_bias=False, kernel_init=_uniform, name="up")
        inject = nn.Dense(hidden, kernel_init=_uniform, bias_init=_bias, name="inject")
        down = nn.Dense(1, use_bias=False, kernel_init=_uniform, name="down")
        return down(nn.relu(up(z) + inject(x)))


class ScalarDEQ(EquilibriumModel):
    """``y = z*``, the fixed point of a `ScalarCell`, found from 0.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
    """

    config: ScalarDEQConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch 1"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, " batch"], Solution]:
        """Outputs and the equilibrium solve.

        Args:
          x: float[batch, 1].
          train: changes nothing: there is no dropout and are no batch statistics.
          probe: see ``jdeq.backward_probe``.
        Returns:
          outputs float[batch]; the Solution with a state [batch, 1].
        Raises:
          ValueError: for inputs of another shape.
        Cost: sol.stats.nfe evaluations of the cell.
        """
        del train
        if jnp.ndim(x) != 2 or x.shape[1] != 1:
            raise ValueError(
                f"jdeq.models.ScalarDEQ: x must have the shape [batch, 1]; got {jnp.shape(x)}"
            )
        cell = ScalarCell(self.config, parent=None)
        solution = equilibrium_layer(self, cell, name="deq")(x, probe=probe)
        return solution.z[:, 0], solution
