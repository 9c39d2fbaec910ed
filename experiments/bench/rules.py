"""What each gradient rule costs and how far its gradient is from the true one, on problems A, B."""

from functools import partial
from pathlib import Path
from typing import Any

import jax

import jdeq
from experiments.bench.harness import Case, measure
from experiments.bench.problems import RTOL, Problem, loss_of, problem_a, problem_b
from experiments.bench.report import write

REFERENCE = "Implicit"
RULES: dict[str, tuple[Any, Any]] = {
    REFERENCE: (jdeq.Anderson(), jdeq.Implicit()),
    "Implicit(rtol=1e-2)": (jdeq.Anderson(), jdeq.Implicit(rtol=1e-2)),
    "Implicit(max_steps=8)": (jdeq.Anderson(), jdeq.Implicit(max_steps=8)),
    "Unrolled": (jdeq.Picard(), jdeq.Unrolled()),
    "ReversibleGradient": (jdeq.Reversible(beta=0.8), jdeq.ReversibleGradient()),
    "Phantom(steps=5, damping=0.8)": (jdeq.Anderson(), jdeq.Phantom(steps=5, damping=0.8)),
    "Neumann(terms=5)": (jdeq.Anderson(), jdeq.Neumann(terms=5)),
    "SharedInverse": (jdeq.Broyden(), jdeq.SharedInverse()),
    "SharedInverse(refine=5)": (jdeq.Broyden(), jdeq.SharedInverse(refine=5)),
    "OneStep": (jdeq.Anderson(), jdeq.OneStep()),
}
"""The rules, each with a solver that it goes with."""


def rule_cases(problem: Problem) -> list[Case]:
    """value_and_grad by every rule, the forward solve to the same tolerance."""
    truth = problem.known

    def make(solver, rule, f):
        def loss(params, z0, x):
            sol = jdeq.fixed_point(
                f,
                params,
                z0,
                x,
                solver=solver,
                gradient=rule,
                rtol=RTOL,
                max_steps=problem.max_steps,
            )
            return loss_of(sol.z), sol.z

        return jax.value_and_grad(loss, has_aux=True)

    def check(output):
        (_, z), gradient = output
        return truth.residual(z) | {"gradient_error": truth.gradient_error(gradient)}

    return [
        Case(
            group=f"{problem.name}, value_and_grad",
            name=name,
            make=partial(make, solver, rule),
            f=problem.f,
            args=problem.args,
            reference=REFERENCE,
            check=check,
        )
        for name, (solver, rule) in RULES.items()
    ]


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Measure everything in one process and write the report to ``out``."""
    problems = [problem_b(batch=8, width=32)] if quick else [problem_a(), problem_b()]
    cases = [case for problem in problems for case in rule_cases(problem)]
    results = measure(cases, rounds=rounds, report=partial(print, flush=True))
    notes = [
        f"{p.name}: {p.size}, spectral radius {p.known.spectral_radius():.3f} at z*"
        for p in problems
    ]
    notes += [f"{name}: solver {solver}, gradient {rule}" for name, (solver, rule) in RULES.items()]
    settings = {"rtol": RTOL, "rounds": rounds, "quick": quick}
    write(out, "rules", results, notes, settings, [f"{p.name}, value_and_grad" for p in problems])
    print((out / "table.md").read_text())
