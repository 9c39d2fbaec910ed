"""Implicit differentiation."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, PyTree

from jdeq import tree
from jdeq.gradients.rule import Point, TangentRule, linear_solve
from jdeq.iterate import iterate
from jdeq.solvers import Anderson, Broyden, NewtonKrylov, Picard, RestartedAnderson
from jdeq.types import Map, Problem, Solver, SolverStats, require_integer
from jdeq.vmapped import over_samples

_LINEAR = (Picard, Anderson, RestartedAnderson, Broyden, NewtonKrylov)  # have an adjoint form


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(TangentRule):
    """Implicit function theorem, ``dL/dtheta = (df/dtheta)^T w`` with ``w = J^T w + dL/dz``.

    Exact at a fixed point where I - J is invertible; the error is that of the two residuals times
    ``1 / (1 - rho)``. Forward mode solves ``dz = J dz + b`` the same way, and both may be
    differentiated again, to any order (reverse mode of reverse mode through a ``lax.scan`` JAX
    refuses, as of any ``lax.custom_linear_solve``: take forward over reverse, or write out the
    loop). A sample whose products are not finite gets NaN, unless what is to be solved for is 0.

    Args:
      solver: for the adjoint (and tangent) system; None: the forward solver, or Anderson where that
        one has no adjoint form. ``NewtonKrylov`` is GMRES here.
      rtol: relative tolerance of that solve, >= 0; None: the forward's.
      max_steps: its budget, >= 1; None: the forward's.
    Raises:
      ValueError, TypeError: when built, for values outside these ranges.
    Cost: one evaluation of f and one transposed product a step of the adjoint solve; memory
      constant in the number of steps: the activations of one evaluation and the solver's state.
    Source: Bai, Kolter, Koltun (2019), Deep Equilibrium Models, theorem 1; Krantz and Parks (2002).
      Deviation: the right-hand side is scaled to unit length per sample, so that the size of the
      loss changes nothing.
    """

    exact: ClassVar[bool] = True
    has_probe: ClassVar[bool] = True

    solver: Solver | None = None
    rtol: float | None = None
    max_steps: int | None = None

    def __post_init__(self):
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(f"jdeq.Implicit: solver must be a jdeq solver; got {self.solver!r}")
        if self.solver is not None and not isinstance(self.solver, _LINEAR):
            names = ", ".join(solver.__name__ for solver in _LINEAR)
            raise ValueError(f"jdeq.Implicit: solver must be one of {names}; got {self.solver}")
        if self.rtol is not None and not self.rtol >= 0:
            raise ValueError(f"jdeq.Implicit: rtol must be >= 0; got {self.rtol}")
        if self.max_steps is not None:
            require_integer("jdeq.Implicit", "max_steps", self.max_steps, 1)

    def adjoint_solver(self, forward: Solver) -> Solver:
        """What solves the adjoint (and tangent) system where ``forward`` solves for the state."""
        if self.solver is not None:
            return self.solver
        return forward if isinstance(forward, _LINEAR) else Anderson()

    def tangent(self, problem: Problem, at: Point, tangents: list, probe) -> PyTree:
        solver = self.adjoint_solver(problem.solver)

        def solve(operator: Map, b: PyTree, transpose: bool) -> tuple[PyTree, SolverStats]:
            return affine_solve(
                operator,
                b,
                solver,
                rtol=problem.rtol if self.rtol is None else self.rtol,
                max_steps=self.max_steps or problem.max_steps,
                ndim=problem.batch_ndim,
                test_every=problem.test_every,
                smaller=at.smaller_operators(transpose),
            )

        b, operator = at.linearize(tangents)

        def backward(ct):
            w, stats = solve(at.transpose(operator), ct, True)
            return w, report(stats.nfe, stats.residual, probe)

        return linear_solve(operator, b, probe, lambda b: solve(operator, b, False), backward)


def starts_at_zero(solver: Solver) -> bool:
    """Whether an adjoint solve starts at 0: undamped, so that the first step leads to b. Not
    Broyden: its products for the slowest samples then depended on rounding (35 or 44 on one map).
    """
    return isinstance(solver, Picard | Anderson | RestartedAnderson) and solver.damping == 1.0


def affine_solve(
    operator: Map,
    b: PyTree,
    solver: Solver,
    *,
    rtol: float,
    max_steps: int,
    ndim: int,
    test_every: int,
    smaller: Sequence[tuple[int, Callable[[Array], Map]]] = (),
) -> tuple[PyTree, SolverStats]:
    """Fixed point of ``u = operator(u) + b`` for a linear operator, per sample, from u = b
    (or from 0, whose product is known); ``smaller``: fewer samples, each with ``rows -> operator``
    of these alone. NaN where no product is finite, unless b is 0.
    """
    # In two steps: the squares of large and of small entries leave the range of floats.
    largest = tree.largest(b, ndim)
    size = tree.unit(largest)
    shrunk = tree.divide(b, size)
    length = tree.unit(tree.norm(shrunk, ndim))
    unit = tree.scale(1.0 / length, shrunk)

    def affine(operator: Map, unit: PyTree) -> Map:
        return lambda u: tree.cast_like(tree.add(operator(u), unit), unit)

    run = functools.partial(
        iterate,
        solver=solver,
        rtol=rtol,
        atol=0.0,
        from_zero=starts_at_zero(solver),
        max_steps=max_steps,
        test_every=test_every,
        smaller=[
            (size, lambda rows, of=of: affine(of(rows), tree.take(unit, rows, 1)))
            for size, of in smaller
        ],
    )
    f = affine(operator, unit)
    solution, _ = over_samples(run, solver, f, unit, ndim, by_jax=bool(smaller))
    # Where not even the first product was finite the solve returns b, another rule's answer.
    unknown = (largest != 0) & jnp.isinf(solution.stats.residual)
    length = jnp.where(unknown, jnp.nan, length)
    return tree.scale(size, tree.scale(length, solution.z)), solution.stats


def report(
    nfe: Int[Array, " *batch"],
    residual: Float[Array, " *batch"],
    probe: Array | SymbolicZero | None,
) -> Array:
    """(nfe, residual) for the probe: per sample if it has room, else mean nfe and largest
    residual.
    """
    nfe, residual = nfe.astype(jnp.float32), residual.astype(jnp.float32)
    if probe is None or probe.ndim == 1:
        nfe, residual = jnp.sum(nfe) / max(1, nfe.size), jnp.max(residual, initial=0.0)
    return jnp.stack([nfe, residual], axis=-1)
