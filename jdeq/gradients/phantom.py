"""Phantom gradient."""

import dataclasses
from typing import ClassVar

import jax
from jaxtyping import PyTree

from jdeq.gradients.rule import Point, TangentRule
from jdeq.types import Problem, require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom(TangentRule):
    """Backpropagation through ``steps`` damped steps ``z <- (1 - damping) z + damping f(z)`` from
    z*.

    Approximate; at a fixed point it equals
    ``damping sum_{i < steps} ((1 - damping) I + damping J)^i``, which tends to (I - J)^-1 where
    the damped iteration converges. The returned state is z* itself. No second derivatives: an
    error says so.

    Args:
      steps: >= 1.
      damping: in (0, 1].
    Raises:
      ValueError: when built, for values outside these ranges.
    Cost: ``steps`` evaluations of f and as many pullbacks; the activations of ``steps``
      evaluations.
    Source: Geng, Zhang, Bai, Wang, Lin (2021), On Training Implicit Models, NeurIPS, eq. 8
      (unrolling).
      Deviation: the paper's forward value is the unrolled state, here it is z*.
    """

    exact: ClassVar[bool] = False

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self):
        require_integer("jdeq.Phantom", "steps", self.steps, 1)
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"jdeq.Phantom: damping must lie in (0, 1]; got {self.damping}")

    def tangent(self, problem: Problem, at: Point, tangents: list, probe) -> PyTree:
        del probe

        def unrolled(params: PyTree, z: PyTree, x: PyTree) -> PyTree:
            for _ in range(self.steps):
                fz = problem.f(params, z, x)
                z = jax.tree.map(lambda z, fz: z + self.damping * (fz - z), z, fz)
            return z

        return at.unroll(unrolled, tangents)
