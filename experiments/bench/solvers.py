"""Whole solves on problems A and B beside hand-written code and the peers; overheads."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdeq
from experiments.bench.entries import MAX_STEPS, Entry, hand_written
from experiments.bench.harness import Case, Result, count, measure
from experiments.bench.peers import peer_entries
from experiments.bench.problems import Problem, Truth, loss_of, problem_a, problem_b, two_layer
from experiments.bench.report import write

RTOL = 1e-5
REACHED = 1.01 * RTOL  # the stop tests are in float32, the check in float64
SOLVERS = {
    "jdeq Picard": jdeq.Picard(),
    "jdeq Anderson": jdeq.Anderson(),
    "jdeq Anderson depth 8": jdeq.Anderson(depth=8),
    "jdeq Broyden": jdeq.Broyden(),
    "jdeq NewtonKrylov": jdeq.NewtonKrylov(),
}


def jdeq_entry(name: str, solver: Any) -> Entry:
    """``jdeq.fixed_point`` with an implicit gradient by the same solver."""

    def build(rtol, norm):
        def solve(f, params, z0, x):
            sol = jdeq.fixed_point(f, params, z0, x, solver=solver, rtol=rtol, max_steps=MAX_STEPS)
            return sol.z, sol.stats.nfe

        return solve

    return Entry(name=name, build=build)


def tightened(entry: Entry, problem: Problem, truth: Truth) -> Callable:
    """The entry's solve at the loosest of 10 tolerances that brings its worst sample to RTOL.

    Peers stop on a norm over the whole batch, so their worst sample lags behind. An entry that
    never gets there, or raises, stays at RTOL: its row says so.
    """
    norm = float(np.linalg.norm(truth.z))
    for power in range(10):
        solve = entry.build(RTOL * 0.75**power, norm)
        try:
            z, _ = jax.jit(partial(solve, problem.f))(problem.params, problem.z0, problem.x)
        except Exception:  # reported by name when the case itself is prepared
            break
        if truth.residual(z)["residual_worst_sample"] <= REACHED:
            return solve
    return entry.build(RTOL, norm)


def solve_cases(problem: Problem, entries: list[Entry]) -> list[Case]:
    """Forward and value_and_grad of every entry, with the true residual and gradient error."""
    truth = Truth(problem.params, problem.x)
    solves = {entry.name: tightened(entry, problem, truth) for entry in entries}
    args = (problem.params, problem.z0, problem.x)

    def forward(solve, f):
        return lambda params, z0, x: solve(f, params, z0, x)

    def value_and_grad(solve, f):
        def loss(params, z0, x):
            z, steps = solve(f, params, z0, x)
            return loss_of(z), (z, steps)

        return jax.value_and_grad(loss, has_aux=True)

    def check_forward(output):
        return truth.residual(output[0])

    def check_gradient(output):
        (_, (z, _)), gradient = output
        return truth.residual(z) | {"gradient_error": truth.gradient_error(gradient)}

    return [
        Case(
            group=f"{problem.name}, {kind}",
            name=name,
            make=partial(make, solve),
            f=problem.f,
            args=args,
            reference=hand_written().name,
            check=check,
        )
        for kind, make, check in (
            ("forward", forward, check_forward),
            ("value_and_grad", value_and_grad, check_gradient),
        )
        for name, solve in solves.items()
    ]


def overhead_cases(problem: Problem, entries: list[Entry]) -> list[Case]:
    """A solve against as many bare evaluations of f, in one loop inside one jit."""
    cases, args = [], (problem.params, problem.z0, problem.x)
    group = f"overhead over bare evaluations, {problem.size}"

    def repeat(f):
        return lambda params, z0, x, n: jax.lax.fori_loop(0, n, lambda _, z: f(params, z, x), z0)

    def solved(solve, f):
        return lambda params, z0, x: solve(f, params, z0, x)

    for entry in entries:
        make = partial(solved, entry.build(RTOL, 1.0))
        evaluations = count(make, problem.f, args)["evaluations"]
        bare = f"{evaluations} bare evaluations for {entry.name}"
        shared = {"group": group, "f": problem.f, "reference": bare}
        cases.append(Case(name=entry.name, make=make, args=args, **shared))
        cases.append(Case(name=bare, make=repeat, args=(*args, jnp.int32(evaluations)), **shared))
    return cases


PRODUCTS = 10


def penalty_cases(problem: Problem) -> list[Case]:
    """A training step without and with the Jacobian penalty, and bare backward products."""
    key = jax.random.key(0)

    def step(weight, f):
        def loss(params, z0, x):
            sol = jdeq.fixed_point(f, params, z0, x, rtol=RTOL, max_steps=MAX_STEPS)
            penalty = jdeq.jacobian_penalty(f, params, sol.z, x, key).mean() if weight else 0.0
            return loss_of(sol.z) + weight * penalty

        return jax.value_and_grad(loss)

    def products(f):
        def run(params, z, x):
            _, product = jax.vjp(lambda z: f(params, z, x), z)
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: product(v)[0], z)

        return run

    makes = {
        "step": partial(step, 0.0),
        "step with penalty": partial(step, 1.0),
        f"{PRODUCTS} backward products": products,
    }
    return [
        Case(
            group=f"Jacobian penalty, {problem.size}",
            name=name,
            make=make,
            f=problem.f,
            args=(problem.params, problem.z0, problem.x),
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
        solve = jdeq_entry(name, SOLVERS[name]).build(RTOL, 1.0)

        def make(f, solve=solve, scale=1.0):
            return jax.grad(lambda params, z0, x: scale * loss_of(solve(f, params, z0, x)[0]))

        args = (problem.params, problem.z0, problem.x)
        products = [
            count(partial(make, scale=scale), problem.f, args)["products"] for scale in (1.0, 1e-6)
        ]
        notes.append(
            f"{problem.name}: {name} takes {products[0]} backward products, "
            f"{products[1]} with the loss multiplied by 1e-6"
        )
    return notes


def fastest_peer_note(results: list[Result], group: str) -> str:
    """The fastest peer whose worst sample reached the tolerance, and jdeq's solvers against it."""
    mine = [r for r in results if r.case.group == group and r.seconds]
    solved = {
        r.case.name: statistics.median(r.seconds)
        for r in mine
        if r.facts["residual_worst_sample"] <= REACHED
    }
    ours = {k: v for k, v in solved.items() if k.startswith("jdeq")}
    peers = {k: v for k, v in solved.items() if k not in ours and k != hand_written().name}
    if not peers:
        return f"{group}: no peer installed that reaches the tolerance"
    best = min(peers, key=peers.__getitem__)
    against = ", ".join(f"{name} {seconds / peers[best]:.2f}x" for name, seconds in ours.items())
    return f"{group}: the fastest peer is {best}, {1e3 * peers[best]:.2f} ms; {against} of its time"


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Measure everything in one process and write the report to ``out``."""
    peers, absent = peer_entries()
    if quick:
        tables, maps, peers = [problem_b(batch=8, width=32)], [two_layer(2, 8, 16, 32)], peers[:1]
    else:
        tables = [problem_a(), problem_b()]
        maps = [two_layer(8, 128, 256, 1024), two_layer(8, 16, 64, 128)]
    ours = [jdeq_entry(name, solver) for name, solver in SOLVERS.items()]
    entries = [hand_written(), *ours, *peers]
    cases = [case for problem in tables for case in solve_cases(problem, entries)]
    bare = [hand_written(), *ours[:4]]
    cases += [case for problem in maps for case in overhead_cases(problem, bare)]
    penalty = penalty_cases(maps[0])
    cases += penalty
    results = measure(cases, rounds=rounds, report=partial(print, flush=True))
    notes = [f"{p.name}: {p.size}, spectral radius {p.spectral_radius:.3f} at z*" for p in tables]
    notes += [f"{name} is not installed: skipped" for name in absent]
    notes += [fastest_peer_note(results, f"{p.name}, value_and_grad") for p in tables]
    notes += [penalty_note(results[-len(penalty) :]), *adjoint_notes(tables[-1])]
    settings = {"rtol": RTOL, "max_steps": MAX_STEPS, "rounds": rounds, "quick": quick}
    write(out, "solvers", results, notes, settings, [f"{p.name}, value_and_grad" for p in tables])
    print((out / "table.md").read_text())
