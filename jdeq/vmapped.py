"""vmap of a solve: one solve, in which the mapped axis is one more axis of samples."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import PyTree

from jdeq.traced import Traced
from jdeq.types import Map, Solution, Solver


def over_samples(run: functools.partial, f: Map, z0: PyTree, ndim: int) -> tuple[Solution, Any]:
    """``run(f, z0=z0, ndim=ndim)``, `iterate` with its options, whose vmap is a run with
    ``ndim + 1`` axes of samples.

    JAX's own rule would map each operation of the loop: a step counter per lane, a scatter into the
    history, and a selection of the whole carry in every step for the lanes that stopped. It is left
    to it where f has effects (collectives over a mapped axis are some), where fewer and fewer
    samples are gathered, and where steps are differentiated, for the result is not.
    """
    solver: Solver = run.keywords["solver"]
    if solver.mixes or run.keywords["smaller"] or run.keywords.get("unroll"):
        return run(f, z0=z0, ndim=ndim)
    traced, captured = Traced.trace(lambda _, z, __: f(z), (), z0, ())
    if traced.effects:
        return run(f, z0=z0, ndim=ndim)

    def of(captured: list, z: PyTree) -> PyTree:
        return traced(((), [captured]), z, ())

    @custom_vmap
    def solve(captured: list, z0: PyTree) -> tuple[Solution, Any]:
        return run(lambda z: of(captured, z), z0=z0, ndim=ndim)

    @solve.def_vmap
    def rule(lanes: int, mapped: list, captured: list, z0: PyTree):
        of_captured, of_z0 = mapped
        z0 = jax.tree.map(
            lambda a, has: a if has else jnp.broadcast_to(a, (lanes, *a.shape)), z0, of_z0
        )
        axes = [0 if has else None for has in of_captured]
        every_lane = jax.vmap(of, in_axes=(axes, 0))
        solution, state = over_samples(run, lambda z: every_lane(captured, z), z0, ndim + 1)
        if solution.trace is not None:
            solution = solution._replace(trace=jnp.moveaxis(solution.trace, 1, 0))
        # What samples share, such as the slot written next, has no lanes.
        one = jax.tree.map(lambda a: a[0], z0)
        kept = jax.eval_shape(lambda z: solver.init(lambda z: z, z, ndim=ndim), one)
        has_lanes = jax.tree.map(lambda a, b: a.ndim > b.ndim, state, kept)
        return (solution, state), (jax.tree.map(lambda _: True, solution), has_lanes)

    return solve(captured, z0)
