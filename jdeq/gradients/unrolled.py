"""Backpropagation through the steps of the solver."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, PyTree

from jdeq.iterate import solve
from jdeq.solvers import NewtonKrylov
from jdeq.types import GradientRule, Problem, Solution, Solver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unrolled(GradientRule):
    """Backpropagation through the solver, ``z_k = step(z_{k-1})``, k <= max_steps, from z0.

    Exact for the program that ran, converged or not: the last iterate, after ``max_steps`` updates
    or where a sample passed the test, is returned. z0 receives a gradient. All orders and modes. A
    sample that turned non-finite is returned as it was before, but its gradient is NaN: the step
    that was rejected is differentiated too. As an estimate of the gradient at the fixed point it
    lags behind the state: ask for a tolerance one or two orders tighter than with ``Implicit``, but
    not for steps beyond the resolution of the dtype (``rtol=0``): what ``Anderson`` mixes there is
    rounding, and its derivative may be anything.

    Args:
      checkpoint: keep only the solver's state per step and evaluate f again in reverse.
    Cost: ``max_steps`` evaluations of f (and one to know the residual of what is returned), as many
      pullbacks; memory grows with ``max_steps``: the state each, and f's activations each unless
      ``checkpoint``.
    Source: ordinary reverse mode; checkpointing as in Griewank and Walther (2000), ACM TOMS 26.
    """

    exact: ClassVar[bool] = True

    checkpoint: bool = True

    def validate(self, solver: Solver) -> None:
        if isinstance(solver, NewtonKrylov):
            raise ValueError(
                "jdeq.Unrolled: jdeq.NewtonKrylov has an inner loop that reverse mode cannot pass; "
                "use gradient=jdeq.Implicit()"
            )

    def solve(
        self, problem: Problem, params: PyTree, z0: PyTree, x: PyTree, probe: Array | None
    ) -> Solution:
        del probe
        return solve(problem, params, z0, x, unroll=True, checkpoint=self.checkpoint)[0]
