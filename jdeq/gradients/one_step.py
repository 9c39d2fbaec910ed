"""Jacobian-free backpropagation."""

import dataclasses
from typing import ClassVar

from jaxtyping import PyTree

from jdeq.gradients.rule import Point, TangentRule
from jdeq.types import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(TangentRule):
    """Jacobian-free backpropagation, ``dL/dtheta ~ (df/dtheta)^T dL/dz``: (I - J)^-1 is replaced
    by I.

    Approximate; a descent direction where ``||J|| < 1`` is small enough against the conditioning of
    df/dtheta. No second derivatives: an error says so.

    Cost: one evaluation of f and one pullback.
    Source: Fung, Heaton, Li, McKenzie, Osher, Yin (2022), JFB: Jacobian-Free Backpropagation for
      Implicit Networks, AAAI, eq. 13.
    """

    exact: ClassVar[bool] = False

    def tangent(self, problem: Problem, at: Point, tangents: list, probe) -> PyTree:
        del problem, probe
        return at.linearize(tangents)[0]
