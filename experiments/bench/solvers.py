"""Whole solves of several families of problems beside hand-written code and the peers; overheads.

Each family is measured in turns of its own and reported before the next one starts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.bench.entries import (
    HAND_WRITTEN,
    SOLVERS,
    Entry,
    hand_written,
    jdeq_entries,
    mixed_entries,
)
from experiments.bench.harness import Case, Result, measure, quartiles, ratios, side_by_side
from experiments.bench.overheads import adjoint_notes, mapped_cases, overhead_cases
from experiments.bench.peers import peer_entries
from experiments.bench.problems import (
    REACHED,
    RTOL,
    STIFF,
    Problem,
    loss_of,
    mdeq,
    mixed,
    problem_a,
    problem_b,
    stiff,
    transformer,
    two_layer,
)
from experiments.bench.report import write
from experiments.bench.torch_peers import NAME as TORCH
from experiments.bench.torch_peers import installed, torch_cases

FAMILIES: dict[str, Callable[[], Problem]] = {
    "A": problem_a,
    "B": problem_b,
    **{name: partial(stiff, name) for name in STIFF},
    "transformer": transformer,
    "mdeq": mdeq,
    "mixed": mixed,
}
QUICK: dict[str, Callable[[], Problem]] = {
    "B": partial(problem_b, batch=8, width=32),
    "mixed": partial(mixed, batch=16, width=16),
}
OVERHEAD = "overhead"
"""The family of what is no whole solve."""


def parts(quick: bool) -> tuple[str, ...]:
    """The families' names."""
    return (*(QUICK if quick else FAMILIES), OVERHEAD)


def gradient_reached(problem: Problem) -> float:
    """Relative error that a gradient may have: what residuals of RTOL may become, ten times."""
    return 10 * RTOL * problem.known.amplification()


def tightened(entry: Entry, problem: Problem) -> Callable:
    """The entry's solve at the loosest of 10 tolerances that brings its worst sample to RTOL.

    Peers stop on a norm over the whole batch, so their worst sample lags behind. An entry that
    never gets there, or raises, stays at RTOL: its row says so. So do those that test each sample.
    """
    norm = float(np.linalg.norm(problem.known.z))

    # Compiled once where the tolerance may be an argument.
    @partial(jax.jit, static_argnums=0 if entry.static_rtol else None)
    def run(rtol, *args):
        return entry.build(rtol, norm, problem.max_steps)(problem.f, *args)[0]

    for power in range(0 if entry.per_sample else 10):
        rtol = RTOL * 0.75**power
        try:
            z = run(rtol, *problem.args)
        except Exception:  # reported by name when the case itself is prepared
            break
        if problem.known.residual(z)["residual_worst_sample"] <= REACHED:
            return entry.build(rtol, norm, problem.max_steps)
    return entry.build(RTOL, norm, problem.max_steps)


KINDS = ("forward", "value_and_grad")


def solve_cases(problem: Problem, entries: list[Entry]) -> list[Case]:
    """Forward and value_and_grad of every entry, with the true residual and gradient error."""
    truth = problem.known
    with ThreadPoolExecutor(side_by_side()) as pool:
        found = pool.map(partial(tightened, problem=problem), entries)
        solves = {entry.name: solve for entry, solve in zip(entries, found, strict=True)}

    def forward(solve, f):
        return lambda params, z0, x: solve(f, params, z0, x)

    def value_and_grad(solve, f):
        def loss(params, z0, x):
            z, steps = solve(f, params, z0, x)
            return loss_of(z, problem.power), (z, steps)

        return jax.value_and_grad(loss, has_aux=True)

    def check_forward(output):
        return truth.residual(output[0])

    def check_gradient(output):
        (_, (z, _)), gradient = output
        return truth.residual(z) | {"gradient_error": truth.gradient_error(gradient)}

    return [
        Case(
            group=f"{problem.name}, {kind}",
            name=entry.name,
            make=partial(make, solves[entry.name]),
            f=problem.f,
            args=problem.args,
            reference=entry.reference,
            check=check,
        )
        for kind, make, check in (
            ("forward", forward, check_forward),
            ("value_and_grad", value_and_grad, check_gradient),
        )
        for entry in entries
        if entry.forward or kind != "forward"
    ]


def fastest(results: list[Result], bound: float) -> tuple[Result | None, Result | None]:
    """Ours and the peer's of a group, among those that reach the residual and, where there is a
    gradient, its error.
    """
    solved = [
        r
        for r in results
        if r.seconds
        and r.facts["residual_worst_sample"] <= REACHED
        and r.facts.get("gradient_error", 0.0) <= bound
    ]
    solved.sort(key=lambda r: np.median(r.seconds))
    ours = [r for r in solved if r.case.name.startswith("jdeq")]
    peers = [r for r in solved if r not in ours and r.case.name != HAND_WRITTEN]
    return next(iter(ours), None), next(iter(peers), None)


def against(result: Result, other: Result) -> float:
    """The median over the rounds of the time over another's."""
    return quartiles([a / b for a, b in zip(result.seconds, other.seconds, strict=True)])[0]


def peer_note(results: list[Result], group: str, bound: float) -> str:
    """The fastest peer that reaches what is asked, and each of ours against it."""
    mine = [r for r in results if r.case.group == group]
    _, peer = fastest(mine, bound)
    asked = f"residual {RTOL:g}" + (
        f" and gradient error {bound:.1e}" if "gradient_error" in mine[0].facts else ""
    )
    if peer is None:
        return f"{group}: no peer installed reaches {asked}"
    parts = []
    for result in mine:
        if result.seconds and result.case.name.startswith("jdeq"):
            missed = fastest([result], bound)[0] is None
            parts.append(
                f"{result.case.name} {against(result, peer):.2f}x"
                + (" (does not reach that)" if missed else "")
            )
    return (
        f"{group}: the fastest peer that reaches {asked} is {peer.case.name}, "
        f"{1e3 * np.median(peer.seconds):.2f} ms; of its time {', '.join(parts)}"
    )


def worst_note(results: list[Result], bounds: dict[str, float], kind: str) -> str:
    """The slowest ratio of our best entry to the best peer over all families: with the best entry
    of each family, and with one entry for all of them.
    """
    best: dict[str, float] = {}
    single: dict[str, list[float]] = {}
    for family, bound in bounds.items():
        mine = [r for r in results if r.case.group == f"{family}, {kind}"]
        ours, peer = fastest(mine, bound)
        if peer is None:
            continue
        best[family] = against(ours, peer) if ours is not None else np.inf
        for result in mine:
            if fastest([result], bound)[0] is not None:
                single.setdefault(result.case.name, []).append(against(result, peer))
    if not best:
        return f"{kind}: no peer reaches what is asked"
    slowest = max(best, key=best.__getitem__)
    note = (
        f"{kind}, the best of ours of each family against the fastest peer: slowest on {slowest}, "
        f"{best[slowest]:.2f}x; "
        + ", ".join(f"{family} {ratio:.2f}x" for family, ratio in best.items())
    )
    everywhere = {name: max(r) for name, r in single.items() if len(r) == len(best)}
    if everywhere:
        name = min(everywhere, key=everywhere.__getitem__)
        note += f"; one entry for all of them: {name}, at most {everywhere[name]:.2f}x"
    return note


def mixed_notes(results: list[Result]) -> list[str]:
    """Solving the unfinished samples only against the whole batch."""
    mine = [r for r in results if r.case.group.startswith("mixed, ") and "compact" in r.case.name]
    return [
        f"{r.case.group}: {r.case.name} takes {quartiles(ratios(r, results))[0]:.2f} of the time "
        "of the whole batch"
        for r in mine
        if r.seconds and ratios(r, results)
    ]


def run(*, out: Path, rounds: int, quick: bool, only: tuple[str, ...] = ()) -> None:
    """Measure everything in one process and write the report to ``out`` after each family.

    Args:
      only: of `parts`; empty: all of them.
    """
    report = partial(print, flush=True)
    problems = QUICK if quick else FAMILIES
    chosen = only or parts(quick)
    peers, absent = peer_entries()
    has_torch = installed()
    absent = absent if has_torch else [*absent, TORCH]
    ours = jdeq_entries()
    results: list[Result] = []
    notes = [f"{name} is not installed: skipped" for name in absent]
    bounds: dict[str, float] = {}
    groups: list[str] = []
    settings = {"rtol": RTOL, "rounds": rounds, "quick": quick, "families": chosen}

    for name in (name for name in chosen if name != OVERHEAD):
        problem = problems[name]()
        if name == "mixed":
            entries = mixed_entries()
        elif quick:
            entries = [hand_written(), *ours[: len(SOLVERS) + 1], *peers[:1]]
        elif name == "mdeq":  # each takes seconds to compile, the slow ones most
            entries = [hand_written(), *(e for e in ours if "GMRES" not in e.name), *peers]
        else:
            entries = [hand_written(), *ours, *peers]
        report(f"{name}: {problem.size}")
        cases = solve_cases(problem, entries) + (torch_cases(problem) if has_torch else [])
        results += measure(cases, rounds=min(rounds, problem.rounds), report=report)
        radius, bound = problem.known.spectral_radius(), gradient_reached(problem)
        notes.append(
            f"{name}: {problem.size}, spectral radius {radius:.3f} at z*, "
            f"||(I - J)^-1|| {problem.known.amplification():.3g}"
        )
        if name == "mixed":
            notes += mixed_notes(results)
        else:
            bounds[name] = bound
            notes += [peer_note(results, f"{name}, {k}", bound) for k in KINDS]
        if name == "B":
            notes += adjoint_notes(problem)
        groups.append(f"{name}, value_and_grad")
        write(out, "solvers", results, notes, settings, groups)
    notes += [worst_note(results, bounds, kind) for kind in KINDS if bounds]
    if OVERHEAD in chosen:
        maps = [two_layer(2, 8, 16, 32)] if quick else [
            two_layer(8, 128, 256, 1024), two_layer(8, 16, 64, 128)
        ]  # fmt: skip
        bare = [hand_written(), *ours[:5]]
        cases = [case for problem in maps for case in overhead_cases(problem, bare)]
        cases += mapped_cases((QUICK if quick else FAMILIES)["B"]())
        results += measure(cases, rounds=rounds, report=report)
    write(out, "solvers", results, notes, settings, groups)
    print((out / "table.md").read_text())
