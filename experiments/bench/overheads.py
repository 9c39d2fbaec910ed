"""What a solve takes beside its evaluations of f."""

from functools import partial

import jax
import jax.numpy as jnp

from experiments.bench.entries import SOLVERS, Entry, jdeq_entry
from experiments.bench.harness import Case, count
from experiments.bench.problems import RTOL, Problem, loss_of


def overhead_cases(problem: Problem, entries: list[Entry]) -> list[Case]:
    """A solve against as many bare evaluations of f, in one loop inside one jit."""
    cases, args = [], problem.args
    group = f"overhead over bare evaluations, {problem.size}"

    def repeat(f):
        return lambda params, z0, x, n: jax.lax.fori_loop(0, n, lambda _, z: f(params, z, x), z0)

    def solved(solve, f):
        return lambda params, z0, x: solve(f, params, z0, x)

    for entry in entries:
        make = partial(solved, entry.build(RTOL, 1.0, problem.max_steps))
        evaluations = count(make, problem.f, args)["evaluations"]
        bare = f"{evaluations} bare evaluations for {entry.name}"
        shared = {"group": group, "f": problem.f, "reference": bare}
        cases.append(Case(name=entry.name, make=make, args=args, **shared))
        cases.append(Case(name=bare, make=repeat, args=(*args, jnp.int32(evaluations)), **shared))
    return cases


def adjoint_notes(problem: Problem) -> list[str]:
    """Products of the adjoint solve, counted with the loss as it is and multiplied by 1e-6."""
    notes = []
    for name in ("jdeq Anderson", "jdeq Broyden"):
        solve = jdeq_entry(name, SOLVERS[name]).build(RTOL, 1.0, problem.max_steps)

        def make(f, solve=solve, scale=1.0):
            return jax.grad(lambda params, z0, x: scale * loss_of(solve(f, params, z0, x)[0]))

        args = problem.args
        products = [
            count(partial(make, scale=scale), problem.f, args)["products"] for scale in (1.0, 1e-6)
        ]
        notes.append(
            f"{problem.name}: {name} takes {products[0]} backward products, "
            f"{products[1]} with the loss multiplied by 1e-6"
        )
    return notes
