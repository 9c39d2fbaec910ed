"""A training step by itself: ``python -m experiments.step_time --workdir DIR``.

What a step of a run takes is in its metrics, beside whatever else the machine did. This takes the
newest checkpoint, trains on for some steps, and writes their median into step_time.json of DIR; the
run itself is left as it was. Nothing else should run.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

import jax
from rich.console import Console

from experiments import workdir
from experiments.build import Run, build
from experiments.cli import command
from experiments.config import ConfigError
from experiments.config_files import read_config
from experiments.provenance import provenance
from jdeq.training import CheckpointError, Checkpoints, TrainState, TrainStep, count_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train."""
    steps: int = 20
    """Steps of which the median is taken; two more come before them."""


def run(arguments: Arguments) -> int:
    """Measure, write, print."""
    if arguments.steps < 1:
        raise ConfigError(f"steps must be >= 1; got {arguments.steps}")
    console = Console(highlight=False)
    times = measure(arguments.workdir, arguments.steps, console)
    workdir.write_text(arguments.workdir / "step_time.json", json.dumps(times, indent=1) + "\n")
    shown = ", ".join(
        f"{name} {1000 * value:.1f} ms" for name, value in times.items() if isinstance(value, float)
    )
    console.print(f"{arguments.workdir}: {shown}", soft_wrap=True)
    return 0


def measure(directory: pathlib.Path, steps: int, console: Console) -> dict:
    """Seconds of a plain step, of one with the penalty and of one of the pre-training, None where
    the run has none; and where they were taken.
    """
    built = build(read_config(directory / workdir.CONFIG_FILE)).spread()
    checkpoints = Checkpoints(
        directory / workdir.CHECKPOINTS,
        read_only=True,
        report=functools.partial(console.print, soft_wrap=True),
    )

    def timed(step: TrainStep, penalize: bool) -> float:
        restored = checkpoints.restore(built.abstract_state())
        if restored is None:
            raise CheckpointError(f"no checkpoints in {checkpoints.directory}")
        return _median(built, step, restored.state, steps, penalize)

    config = built.config
    # As training makes its steps, so that programs compiled for it are found again.
    plain = count_flops(built.train_step(built.model), built.model)
    times = {
        "plain": timed(plain, False),
        "penalized": timed(plain, True) if config.regularizer.gamma else None,
        "pretrain": timed(built.train_step(built.pretrain_model), False)
        if config.pretrain.steps
        else None,
        "steps": steps,
        "provenance": provenance(),
    }
    checkpoints.close()
    return times


def _median(run: Run, step: TrainStep, state: TrainState, steps: int, penalize: bool) -> float:
    weight, seconds = run.config.regularizer.gamma if penalize else 0.0, []
    for position in range(steps + 2):
        batch = run.batch_at(position)
        jax.block_until_ready(batch)
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, weight, penalize=penalize))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("step_time", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
