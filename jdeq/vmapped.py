"""vmap of a solve: one solve, in which the mapped axis is one more axis of samples."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import PyTree

from jdeq.traced import call, trace
from jdeq.types import Map, Solution, Solver

_LAID_OUT = ("sharding_constraint", "shard_map")  # what vmap's spmd_axis_name is for


class Run(Protocol):
    """A solve of a map, with its options."""

    def __call__(self, f: Map, *, z0: PyTree, ndim: int) -> tuple[Solution, Any]: ...


def over_samples(
    run: Run, solver: Solver, f: Map, z0: PyTree, ndim: int, *, by_jax: bool
) -> tuple[Solution, Any]:
    """``run(f, z0=z0, ndim=ndim)``, whose vmap is a run with ``ndim + 1`` axes of samples.

    JAX's own rule would map each operation of the loop: a step counter per lane, a scatter into the
    history, and a selection of the whole carry in every step for the lanes that stopped. It is left
    to it with ``by_jax``, where the solver mixes samples, where f has effects (collectives are
    some, but not all) or says how values lie on a mesh, and where lanes are split over an explicit
    mesh axis. Cannot be differentiated in reverse mode unless ``by_jax``.
    """
    if by_jax or solver.mixes:
        return run(f, z0=z0, ndim=ndim)
    jaxpr, shapes, captured = trace(f, z0)
    out = jax.tree.structure(shapes)
    if jaxpr.effects or _names_axes(jaxpr):
        return run(f, z0=z0, ndim=ndim)

    def of(captured: list, z: PyTree) -> PyTree:
        return call(jaxpr, out, captured, z)

    def alone(captured: list, z0: PyTree) -> tuple[Solution, Any]:
        return run(lambda z: of(captured, z), z0=z0, ndim=ndim)

    def rule(lanes: int, mapped: list, captured: list, z0: PyTree):
        axes = tuple(jax.tree.map(lambda has: 0 if has else None, mapped))
        leaves = zip(jax.tree.leaves((captured, z0)), jax.tree.leaves(mapped), strict=True)
        if any(has and jax.typeof(a).sharding.spec[0] is not None for a, has in leaves):
            results = jax.vmap(alone, in_axes=axes, axis_size=lanes)(captured, z0)
            return results, jax.tree.map(lambda _: True, results)
        z0 = jax.tree.map(
            lambda a, has: a if has else jnp.broadcast_to(a, (lanes, *a.shape)), z0, mapped[1]
        )
        every_lane = jax.vmap(of, in_axes=(axes[0], 0))
        solution, state = over_samples(
            run, solver, lambda z: every_lane(captured, z), z0, ndim + 1, by_jax=False
        )
        if solution.trace is not None:
            solution = solution._replace(trace=jnp.moveaxis(solution.trace, 1, 0))
        # What samples share, such as the slot written next, has no lanes.
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), z0)
        kept = jax.eval_shape(lambda z: solver.init(lambda z: z, z, ndim=ndim), one)
        has_lanes = jax.tree.map(lambda a, b: a.ndim > b.ndim, state, kept)
        return (solution, state), (jax.tree.map(lambda _: True, solution), has_lanes)

    solve = custom_vmap(alone)
    solve.def_vmap(rule)
    return solve(captured, z0)


def _names_axes(jaxpr: Any) -> bool:
    """Whether a program, or one in it, has a collective or says how values lie on a mesh."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _LAID_OUT or eqn.params.get("axis_name") is not None:
            return True
        if any(map(_names_axes, _programs(list(eqn.params.values())))):
            return True
    return False


def _programs(value: Any) -> Iterator[Any]:
    """The jaxprs among an operation's parameters."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _programs(part)
    elif hasattr(value, "eqns"):
        yield value
