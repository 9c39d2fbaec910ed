"""What a solve takes beside its evaluations of f."""

from collections.abc import Callable
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


def mapped_cases(problem: Problem) -> list[Case]:
    """value_and_grad of the solve of one sample under vmap against that of the batch; nothing is
    counted, for a callback in f would have JAX map the loop.
    """
    cases, group = [], f"{problem.name}, value_and_grad, one sample under vmap"

    def add(entry: Entry, name: str, of_all: Callable[[Callable], Callable]) -> None:
        solve = entry.build(RTOL, 1.0, problem.max_steps)
        solve_all = of_all(lambda params, z0, x: solve(problem.f, params, z0, x)[0])
        gradient = jax.value_and_grad(lambda *args: loss_of(solve_all(*args)))
        shared = {"group": group, "f": None, "reference": entry.name, "args": problem.args}
        cases.append(Case(name=name, make=lambda _: gradient, **shared))

    for name, solver in SOLVERS.items():
        add(jdeq_entry(name, solver), name, lambda solve: solve)
        one = jdeq_entry(name, solver, batch_ndim=0)
        add(one, f"{name}, mapped", lambda solve: jax.vmap(solve, (None, 0, 0)))
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
