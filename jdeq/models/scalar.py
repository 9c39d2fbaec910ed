"""The smallest DEQ there is: one number in, one number out, a state of one number.

    y = z*(x),  z* = f(z*; x),  f(z; x) = W_2^T relu(W_1 z + U x + b)

Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
section 5.1. The paper does not say how the weights start; here U, b and W_2 as PyTorch, its
framework, starts linear layers, uniform within 1 / sqrt(inputs), and W_1 within a tenth of that:
from a map that is almost flat in z. Started as the others (``state_bound=1``), W_1 can bring the
slope f' at z* past 1 in a training without the penalty, where gradients have a pole, and the fit
is lost.
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


def _within(bound: float):
    """Uniform in [-bound, bound]."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalarDEQConfig:
    """What a `ScalarDEQ` is made of.

    Args:
      hidden: units of f, >= 1; four parameters each.
      state_bound: W_1 starts uniform within so much of 0; > 0.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    hidden: int = 50
    state_bound: float = 0.1

    def __post_init__(self):
        name = "jdeq.models.ScalarDEQConfig"
        require_integer(name, "hidden", self.hidden, 1)
        if not self.state_bound > 0:
            raise ValueError(f"{name}: state_bound must be > 0; got {self.state_bound}")


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
        start = _within(self.config.state_bound)
        up = nn.Dense(hidden, use_bias=False, kernel_init=start, name="up")
        inject = nn.Dense(hidden, kernel_init=_uniform, bias_init=_within(1.0), name="inject")
        down = nn.Dense(1, use_bias=False, kernel_init=_uniform, name="down")
        return down(nn.relu(up(z) + inject(x)))


class ScalarDEQ(EquilibriumModel):
    """``y = z*``, the fixed point of a `ScalarCell`, found from 0.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
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
