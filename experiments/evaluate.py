"""Evaluate a trained model: ``python -m experiments.evaluate --workdir DIR [--budgets 1 2 ...]``.

Restores the newest readable checkpoint of the run in DIR, finished or not (or the best one), and
changes nothing.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console

from experiments import run_report, stopping, trained
from experiments.build import Run
from experiments.cli import command, timed
from experiments.config import ConfigError
from experiments.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train."""
    best: bool = False
    """The best of the checkpoints that were tested while training, in place of the newest."""
    budgets: tuple[int, ...] | None = None
    """Hard stops: the state after exactly so many evaluations of the cell; None: those of the run's
    report."""
    rtols: tuple[float, ...] | None = None
    """Tolerances that each sample is solved to, in at most 50 evaluations (50 steps of
    NewtonKrylov); None: as above."""
    test_length: int | None = None
    """Of text: tokens in a window; a run that is contiguous reads it segment by segment, with its
    memory. None: as in training."""
    test_stride: int | None = None
    """Of text: from one window to the next, of which only the last so many tokens count (a sliding
    window); None: as in training."""
    test_windows: int | None = None
    """Of text: how many windows, spread over the test text; 0: all; None: as in training."""


def run(arguments: Arguments) -> int:
    """Restore, evaluate on the test examples, print a table."""
    console = Console(highlight=False)
    loaded, restored = trained.load(arguments.workdir, console, best=arguments.best)
    stops = trained.stops(loaded, arguments.budgets, arguments.rtols)
    task = _task(loaded, arguments)
    tell = timed(functools.partial(Console(stderr=True, highlight=False).print, soft_wrap=True))
    try:
        rows = stopping.evaluate_at(
            loaded.model, restored.state.averaged_variables, task, **stops, say=tell
        )
    except ValueError as error:  # of a model that cannot read windows so long
        raise ConfigError(str(error)) from error
    console.print(
        f"{arguments.workdir}: step {int(restored.state.step)} of {loaded.total_steps}, "
        f"{task.test_examples} test examples",
        soft_wrap=True,
    )
    run_report.show_rows(rows, console)
    return 0


def _task(loaded: Run, arguments: Arguments) -> Task:
    """The data of the run, in other windows where those are asked for."""
    names = ("test_length", "test_stride", "test_windows")
    asked = {name: getattr(arguments, name) for name in names}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked:
        return loaded.task
    data = loaded.config.data
    if loaded.task.text is None:
        raise ConfigError(f"{next(iter(asked))} is for text; the run's data are {data}")
    if asked.get("test_windows") == 0:
        asked["test_windows"] = None
    try:
        return dataclasses.replace(data, **asked).build(loaded.config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("evaluate", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
