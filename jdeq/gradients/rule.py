"""What the rules share that keep the solve out of the derivative: one custom_jvp around the loop.

At a fixed point the tangent obeys ``(I - J) dz = b`` with ``b = df/dparams dparams + df/dx dx``. A
rule says how it turns b, or the tangents of params and x, into dz; JAX transposes that for reverse
mode.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from jdeq import tree
from jdeq.iterate import solve
from jdeq.types import GradientRule, Map, ParamMap, Problem, Solution, SolverStats

Tangents = list[Any]  # one per leaf of (params, x): an array, or SymbolicZero where nothing depends


class TangentRule(GradientRule):
    """A gradient rule given by its tangent at the returned state."""

    keeps_state = False
    """Whether the tangent reads the solver's last state (its factors)."""

    @property
    def can_compact(self) -> bool:
        return not self.keeps_state

    @abc.abstractmethod
    def tangent(
        self, problem: Problem, at: "Point", tangents: Tangents, probe: Array | SymbolicZero | None
    ) -> PyTree:
        """``dz``, linear in the tangents, with the structure and dtypes of z."""

    def solve(
        self, problem: Problem, params: PyTree, z0: PyTree, x: PyTree, probe: Array | None
    ) -> Solution:
        solution, _ = _solve(self, problem, params, z0, x, probe)
        nfe, residual, status = solution.stats
        stats = SolverStats(nfe.astype(jnp.int32), residual, status.astype(jnp.int32))
        return solution._replace(stats=stats)


class Point:
    """Where a solve ended: the map there and its linearization, made once for all products."""

    def __init__(self, problem: Problem, params: PyTree, z: PyTree, x: PyTree, state: Any):
        self.problem, self.params, self.z, self.x, self.state = problem, params, z, x, state

    def linearize(self, tangents: Tangents) -> tuple[PyTree, Map]:
        """``b``, the tangent of f when params and x move and z does not; and ``v -> J v``."""
        moving, values, call = self._moving(tangents)
        # Apart, not in one linearization with zeros for what does not move: a custom_vjp inside f
        # can be transposed, but not evaluated at a zero tangent.
        b = jax.jvp(lambda values: call(values, self.z), (values,), (moving,))[1]
        _, push = jax.linearize(lambda z: call(values, z), self.z)
        return b, push

    def smaller_operators(self, transpose: bool) -> list[tuple[int, Callable[[Array], Map]]]:
        """Each smaller size with ``rows -> (v -> J v)``, or ``J^T v``, of these samples alone."""

        def of(f: ParamMap) -> Callable[[Array], Map]:
            def part(rows: Array) -> Map:
                z, x = tree.take((self.z, self.x), rows, 1)
                _, push = jax.linearize(lambda z: f(self.params, z, x), z)
                if not transpose:
                    return push
                pull = jax.linear_transpose(push, z)
                return lambda w: pull(w)[0]

            return part

        return [(size, of(f)) for size, f in self.problem.smaller]

    def unroll(self, step: ParamMap, tangents: Tangents) -> PyTree:
        """Tangent of ``step(params, z, x)`` when params and x move, z being where it starts."""
        moving, values, call = self._moving(tangents, step)
        return jax.jvp(lambda values: call(values, self.z), (values,), (moving,))[1]

    def transpose(self, operator: Map) -> Map:
        """``w -> operator^T w`` for a linear operator on states."""
        pull = jax.linear_transpose(operator, self.z)
        return lambda w: pull(w)[0]

    def _moving(self, tangents: Tangents, g: ParamMap | None = None) -> tuple[list, list, Any]:
        """The leaves of (params, x) that move, their tangents, and f as a function of them and
        z.
        """
        g = g or self.problem.f
        leaves, treedef = jax.tree.flatten((self.params, self.x))
        which = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def call(values: list, z: PyTree) -> PyTree:
            filled = list(leaves)
            for i, value in zip(which, values, strict=True):
                filled[i] = value
            params, x = jax.tree.unflatten(treedef, filled)
            return g(params, z, x)

        return [tangents[i] for i in which], [leaves[i] for i in which], call


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _solve(rule, problem, params, z0, x, probe):
    del probe
    solution, state = solve(problem, params, z0, x, freeze=rule.keeps_state)
    # Integers leave as floats: the float0 tangent of an integer cannot vary over a mesh axis.
    dtype = solution.stats.residual.dtype
    floating = jax.tree.map(
        lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(dtype),
        (solution.stats, state if rule.keeps_state else None),
    )
    return solution._replace(stats=floating[0]), floating[1]


@functools.partial(_solve.defjvp, symbolic_zeros=True)
def _solve_jvp(rule, problem, primals, tangents):
    params, z0, x, probe = primals
    d_params, _, d_x, d_probe = tangents
    solution, state = _solve(rule, problem, params, z0, x, probe)
    moving = jax.tree.leaves((d_params, d_x), is_leaf=lambda t: isinstance(t, SymbolicZero))
    at = Point(problem, params, solution.z, x, state)
    if not rule.exact:
        reason = (
            f"jdeq.{type(rule).__name__}: second derivatives do not exist for an approximate "
            "gradient rule"
        )
        at.params, at.z, at.x, at.state = first_order_only(reason, (params, solution.z, x, state))
    dz = rule.tangent(problem, at, moving, d_probe)
    out = jax.tree.map(_zero_tangent, (solution, state))
    return (solution, state), (out[0]._replace(z=dz), out[1])


def _zero_tangent(a: Array) -> Array | np.ndarray:
    if jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.zeros_like(a)
    return np.zeros(a.shape, jax.dtypes.float0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def first_order_only(reason: str, values: PyTree) -> PyTree:
    """``values``, whose derivative is refused for the reason given."""
    del reason
    return values


@first_order_only.defjvp
def _refuse(reason, primals, tangents):
    del primals, tangents
    raise NotImplementedError(
        f"{reason}; use gradient=jdeq.Unrolled() with the same solver, or jdeq.Implicit()"
    )


def linear_solve(operator: Map, b: PyTree, probe: Any, forward: Any, backward: Any) -> PyTree:
    """Solve ``u - operator(u) = b``; the transposed solve reports into the probe's cotangent.

    ``forward(b)`` and ``backward(ct)`` return the solution and its report, float32[*probe]. Built
    on custom_linear_solve, so that both modes and every order of differentiation follow. The probe
    rides along as a second unknown s with the equation ``s = probe``, whose transposed solve
    returns the report in place of s.
    """
    if probe is None or isinstance(probe, SymbolicZero):
        return lax.custom_linear_solve(
            lambda u: jax.tree.map(jnp.subtract, u, operator(u)),
            b,
            lambda _, rhs: forward(rhs)[0],
            lambda _, ct: backward(ct)[0],
        )

    def matvec(pair):
        # The (never executed) coupling keeps both unknowns linear in every differentiated operand,
        # which custom_linear_solve's transposition asks of them.
        u, s = pair
        residual = jax.tree.map(jnp.subtract, u, operator(_tied(u, s)))
        return residual, _tied(s, residual)

    u, _ = lax.custom_linear_solve(
        matvec,
        (_tied(b, probe), probe),
        lambda _, rhs: (forward(rhs[0])[0], rhs[1]),
        lambda _, ct: backward(ct[0]),
    )
    return u


def _tied(a: PyTree, b: PyTree) -> PyTree:
    """``a``, made to depend on ``b`` with derivative zero (also where b's cotangent is
    infinite).
    """
    sums = [jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(b)]
    total = sum(sums[1:], sums[0])

    def tie(leaf):
        never = jnp.zeros_like(leaf, bool)
        return leaf + jnp.where(never, total.astype(leaf.dtype), jnp.zeros_like(leaf))

    return jax.tree.map(tie, a)
