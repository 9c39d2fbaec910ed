"""What a solve takes beside its evaluations of f, and a step of training beside the penalty."""

import statistics
from functools import partial

import jax
import jax.numpy as jnp

import jdeq
from experiments.bench.entries import SOLVERS, Entry, jdeq_entry
from experiments.bench.harness import Case, Result, count
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


PRODUCTS = 10


def bare_products(f):
    """`PRODUCTS` products with the transposed Jacobian of f, one after the other."""

    def run(params, z, x):
        _, product = jax.vjp(lambda z: f(params, z, x), z)
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: product(v)[0], z)

    return run


def penalty_cases(problem: Problem) -> list[Case]:
    """A training step without and with the Jacobian penalty, and bare backward products."""
    key = jax.random.key(0)

    def step(weight, f):
        def loss(params, z0, x):
            sol = jdeq.fixed_point(f, params, z0, x, rtol=RTOL, max_steps=problem.max_steps)
            penalty = jdeq.jacobian_penalty(f, params, sol.z, x, key).mean() if weight else 0.0
            return loss_of(sol.z) + weight * penalty

        return jax.value_and_grad(loss)

    makes = {
        "step": partial(step, 0.0),
        "step with penalty": partial(step, 1.0),
        f"{PRODUCTS} backward products": bare_products,
    }
    return [
        Case(
            group=f"Jacobian penalty, {problem.size}",
            name=name,
            make=make,
            f=problem.f,
            args=problem.args,
            reference="step",
        )
        for name, make in makes.items()
    ]


def penalty_note(results: list[Result]) -> str:
    """The extra time of the penalty in backward products, from the medians of the paired rounds."""
    plain, penalised, products = results
    extra = statistics.median(b - a for a, b in zip(plain.seconds, penalised.seconds, strict=True))
    product = statistics.median(products.seconds) / PRODUCTS
    return (
        f"{plain.case.group}: the penalty adds {1e3 * extra:.2f} ms to a step, "
        f"{extra / product:.1f} backward products of {1e3 * product:.2f} ms"
    )


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
