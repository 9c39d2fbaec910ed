"""What the implicit models share: how their equilibrium is solved and differentiated."""

from typing import Any

import flax.linen as nn

from jdeq.gradients import Implicit
from jdeq.linen import DEQ
from jdeq.solvers import Anderson


class EquilibriumModel(nn.Module):
    """A model around `jdeq.linen.DEQ`; ``model.clone(rtol=1e-4)`` solves the same model otherwise.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
    """

    config: Any
    solver: Any = Anderson()
    gradient: Any = Implicit()
    rtol: float = 1e-3
    atol: float = 0.0
    max_steps: int = 40
    test_every: int = 1
    penalty: Any = None


def equilibrium_layer(
    model: EquilibriumModel, cell: nn.Module, *, name: str | None = None, causal: bool = False
) -> DEQ:
    """The DEQ around ``cell``, a submodule of ``model``, which calls this where it makes those."""
    return DEQ(
        cell=cell,
        solver=model.solver,
        gradient=model.gradient,
        rtol=model.rtol,
        atol=model.atol,
        max_steps=model.max_steps,
        test_every=model.test_every,
        penalty=model.penalty,
        causal=causal,
        name=name,
    )
