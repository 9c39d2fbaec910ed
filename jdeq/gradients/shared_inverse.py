"""SHINE: the forward quasi-Newton factors shared with the backward pass."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from jdeq import tree
from jdeq.gradients.implicit import report
from jdeq.gradients.rule import Point, TangentRule, linear_solve
from jdeq.solvers import Broyden
from jdeq.types import Map, Problem, Solver, require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedInverse(TangentRule):
    """Adjoint from the forward Broyden factors, ``w = P^T dL/dz`` with ``P ~ (I - J)^-1``.

    Approximate. On demand each refinement step corrects with one true product,
    ``w <- w + P^T (dL/dz - (I - J)^T w)``, which converges to the exact adjoint where
    ``||I - P^T (I - J)^T|| < 1``. No second derivatives: an error says so.

    Args:
      refine: number of refinement steps, >= 0.
    Raises:
      ValueError: when built, if ``refine`` < 0; when used with a forward solver other than Broyden.
    Cost: ``refine`` transposed products, one more when a probe asks for the residual, and one
      pullback to the parameters.
    Source: Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau (2022), SHINE: SHaring the INverse Estimate
      from the forward pass, ICLR, section 2. Deviation: refinement by preconditioned Richardson
      steps.
    """

    exact: ClassVar[bool] = False
    has_probe: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    refine: int = 0

    def __post_init__(self):
        require_integer("jdeq.SharedInverse", "refine", self.refine, 0)

    def validate(self, solver: Solver) -> None:
        if not isinstance(solver, Broyden):
            raise ValueError(
                "jdeq.SharedInverse: the forward solver must be jdeq.Broyden, whose factors it "
                f"shares; got {solver}"
            )

    def tangent(self, problem: Problem, at: Point, tangents: list, probe) -> PyTree:
        solver, ndim = problem.solver, problem.batch_ndim + problem.causal
        assert isinstance(solver, Broyden)
        b, operator = at.linearize(tangents)

        def solve(operator: Map, b: PyTree, transpose: bool) -> PyTree:
            u = solver.inverse(at.state, b, ndim=ndim, transpose=transpose)
            for _ in range(self.refine):
                rest = tree.subtract(tree.add(operator(u), b), u)
                u = tree.add(u, solver.inverse(at.state, rest, ndim=ndim, transpose=transpose))
            return u

        def backward(ct):
            transposed = at.transpose(operator)
            w = solve(transposed, ct, True)
            if probe is None or isinstance(probe, SymbolicZero):
                return w, None  # and no product for its residual
            image = tree.add(transposed(w), ct)
            residual = tree.relative(image, w, ndim)
            return w, report(jnp.full_like(residual, self.refine + 1, jnp.int32), residual, probe)

        def forward(b):
            return solve(operator, b, False), None

        return linear_solve(operator, b, probe, forward, backward)
