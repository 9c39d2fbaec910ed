"""Truncated Neumann series."""

import dataclasses
from typing import ClassVar

from jaxtyping import PyTree

from jdeq import tree
from jdeq.gradients.rule import Point, TangentRule
from jdeq.types import Problem, require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(TangentRule):
    """Truncated Neumann series, ``(I - J)^-1 ~ sum_{i < terms} J^i``.

    Approximate; the error falls as ``rho(J)^terms`` where rho(J) < 1. ``terms=1`` is ``OneStep``.
    No second derivatives: an error says so.

    Args:
      terms: number of terms, >= 1.
    Raises:
      ValueError: when built, if ``terms`` < 1.
    Cost: one evaluation of f and ``terms`` products (the last one with df/dtheta).
    Source: Geng, Zhang, Bai, Wang, Lin (2021), On Training Implicit Models, NeurIPS, section 3.
    """

    exact: ClassVar[bool] = False

    terms: int = 5

    def __post_init__(self):
        require_integer("jdeq.Neumann", "terms", self.terms, 1)

    def tangent(self, problem: Problem, at: Point, tangents: list, probe) -> PyTree:
        del problem, probe
        b, operator = at.linearize(tangents)
        total = b
        for _ in range(self.terms - 1):  # Horner: b + J (b + J (b + ...))
            total = tree.add(b, operator(total))
        return total
