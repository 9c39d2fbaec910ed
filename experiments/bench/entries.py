"""What an entry of the solver tables is; the hand-written one and ours.

An entry builds ``solve(f, params, z0, x) -> (z, steps)``, given the relative tolerance, ||z*|| of
the whole batch (some peers only know an absolute tolerance) and the budget. ``steps`` is the
library's count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jdeq
from experiments.bench.picard import picard

HAND_WRITTEN = "hand-written Picard"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A way to solve.

    Args:
      build: ``build(rtol, norm, max_steps)`` returns ``solve(f, params, z0, x) -> (z, steps)``.
      forward: whether its forward solve is a row of its own; not where an entry that differs in the
        gradient only has it already.
      per_sample: whether it tests every sample by the residual that is asked.
      static_rtol: whether its tolerance has to be a number when it is compiled.
      reference: the entry that its ratio is taken to.
    """

    name: str
    build: Callable[[float, float, int], Callable]
    forward: bool = True
    per_sample: bool = False
    static_rtol: bool = False
    reference: str = HAND_WRITTEN


def hand_written() -> Entry:
    """The reference."""

    def build(rtol, norm, max_steps):
        return lambda f, params, z0, x: (picard(f, params, z0, x, rtol, max_steps), ())

    return Entry(name=HAND_WRITTEN, build=build, per_sample=True)


def jdeq_entry(
    name: str,
    solver: Any,
    gradient: Any = jdeq.Implicit(),  # noqa: B008
    *,
    forward: bool = True,
    reference: str = HAND_WRITTEN,
    **options: Any,
) -> Entry:
    """``jdeq.fixed_point`` with these options."""

    def build(rtol, norm, max_steps):
        def solve(f, params, z0, x):
            sol = jdeq.fixed_point(
                f, params, z0, x, solver=solver, gradient=gradient, rtol=rtol, max_steps=max_steps,
                **options,
            )  # fmt: skip
            return sol.z, sol.stats.nfe

        return solve

    return Entry(name=name, build=build, forward=forward, per_sample=True, reference=reference)


GMRES = jdeq.NewtonKrylov()  # which is what it is on the adjoint system
SOLVERS = {
    "jdeq Picard": jdeq.Picard(),
    "jdeq Anderson": jdeq.Anderson(),
    "jdeq Anderson depth 8": jdeq.Anderson(depth=8),
    "jdeq RestartedAnderson": jdeq.RestartedAnderson(),
    "jdeq Broyden": jdeq.Broyden(),
    "jdeq NewtonKrylov": jdeq.NewtonKrylov(),
}
"""Both ways by the same solver."""
ADJOINTS = {
    "jdeq Anderson depth 8, adjoint GMRES": (jdeq.Anderson(depth=8), jdeq.Implicit(solver=GMRES)),
    "jdeq Anderson depth 8, adjoint rtol 1e-4": (
        jdeq.Anderson(depth=8), jdeq.Implicit(rtol=1e-4),
    ),
    "jdeq Anderson depth 8, adjoint GMRES rtol 1e-4": (
        jdeq.Anderson(depth=8), jdeq.Implicit(solver=GMRES, rtol=1e-4),
    ),
    "jdeq RestartedAnderson, adjoint rtol 1e-4": (
        jdeq.RestartedAnderson(), jdeq.Implicit(rtol=1e-4),
    ),
    "jdeq Broyden, adjoint GMRES": (jdeq.Broyden(), jdeq.Implicit(solver=GMRES)),
}  # fmt: skip
"""Another adjoint solve than the forward one."""


def jdeq_entries() -> list[Entry]:
    """Ours, for all families."""
    return [
        *(jdeq_entry(name, solver) for name, solver in SOLVERS.items()),
        *(jdeq_entry(name, *parts, forward=False) for name, parts in ADJOINTS.items()),
    ]


COMPACT = (16, 4)


def mixed_entries() -> list[Entry]:
    """Solving the whole batch to the end, and the unfinished samples only."""
    entries = []
    for name in ("jdeq Picard", "jdeq Anderson"):
        entries.append(jdeq_entry(name, SOLVERS[name], reference=name))
        entries += [
            jdeq_entry(f"{name}, compact {parts}", SOLVERS[name], reference=name, compact=parts)
            for parts in COMPACT
        ]
    return entries
