"""What it saves to start where a solve of the same inputs ended: ``python -m
experiments.warm_start NAME``.

A run is trained from its start, without pre-training and penalty. A batch is solved, training goes
on for some steps, and the same batch is solved again: from where the model starts, and from its
earlier equilibrium. An epoch later that is what a table with an equilibrium a sample would give.
Counted are evaluations until a sample is done, by the run's own solver; nothing is written.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import PyTree

import jdeq
from experiments.build import build
from experiments.cli import command
from experiments.config import ConfigError
from experiments.config_files import load_run
from experiments.tables import markdown_of
from jdeq.training import TrainState, equilibrium_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    name: tyro.conf.Positional[str]
    """A run of experiments/configs whose model has an equilibrium."""
    after: int = 300
    """Training steps before the batch is first solved."""
    gaps: tuple[int, ...] = (1, 15, 60)
    """Training steps from there to where it is solved again, rising."""
    rtols: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    """Relative tolerances of the solves; the equilibrium kept is that of the last."""
    max_steps: int = 100
    """Their budget."""


def run(arguments: Arguments) -> int:
    """Train, measure, print a Markdown table."""
    gaps = arguments.gaps
    if arguments.after < 0:
        raise ConfigError(f"after must be >= 0; got {arguments.after}")
    if not gaps or any(b <= a for a, b in itertools.pairwise((0, *gaps))):
        raise ConfigError(f"gaps must be >= 1 and rise; got {gaps}")
    if not arguments.rtols:
        raise ConfigError("rtols must have at least one tolerance; got none")
    if bad := [rtol for rtol in arguments.rtols if not 0 < rtol < 1]:
        raise ConfigError(f"rtols must lie in (0, 1); got {bad[0]}")
    loaded = build(load_run(arguments.name))
    if not loaded.implicit:
        raise ConfigError(f"{arguments.name} has no equilibrium")
    inputs = jnp.asarray(loaded.task.batches(0).inputs)
    step, state = loaded.train_step(loaded.model), loaded.initial_state()

    @jax.jit
    def solve(state: TrainState, z0: PyTree | None = None) -> list[jdeq.Solution]:
        posed = equilibrium_of(loaded.model, state.variables, inputs)
        return [
            jdeq.fixed_point(
                posed.f, posed.params, posed.z0 if z0 is None else z0, posed.x,
                solver=loaded.model.solver, rtol=rtol, max_steps=arguments.max_steps,
            )
            for rtol in arguments.rtols
        ]  # fmt: skip

    def train(state: TrainState, first: int, end: int) -> TrainState:
        for position in range(first, end):
            state, _ = step(state, loaded.task.batches(position), 0.0, penalize=False)
        return state

    start = arguments.after
    state = train(state, 0, start)
    earlier = solve(state)[-1].z
    rows = []
    for last, gap in itertools.pairwise((0, *gaps)):
        state = train(state, start + last, start + gap)
        for rtol, cold, warm in zip(
            arguments.rtols, solve(state), solve(state, earlier), strict=True
        ):
            converged = [s.stats.status == jdeq.Status.CONVERGED for s in (cold, warm)]
            rows.append(
                {
                    "steps between": str(gap),
                    "rtol": f"{rtol:g}",
                    "from the model's start": f"{np.mean(cold.stats.nfe):.1f}",
                    "from its last equilibrium": f"{np.mean(warm.stats.nfe):.1f}",
                    "converged": ", ".join(f"{np.mean(c):.0%}" for c in converged),
                }
            )
    print(markdown_of(rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("warm_start", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
