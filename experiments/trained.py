"""A run of experiments.train, read back: what the commands that come after training share."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments import stopping, workdir
from experiments.build import Run, build
from experiments.config import ConfigError
from experiments.config_files import read_config
from jdeq.training import CheckpointError, Checkpoints, Restored


def load(directory: pathlib.Path, console: Console, *, best: bool = False) -> tuple[Run, Restored]:
    """The run in ``directory``, finished or not, and its newest readable checkpoint, or the
    ``best`` of those that were tested; changes nothing.

    Raises:
      ConfigError: if there is no configuration, or one that cannot be built.
      CheckpointError: if there is no checkpoint, or none that can be read.
    """
    run = build(read_config(directory / workdir.CONFIG_FILE))
    checkpoints = Checkpoints(
        directory / workdir.CHECKPOINTS,
        read_only=True,
        report=functools.partial(console.print, soft_wrap=True),
    )
    restored = checkpoints.restore(run.abstract_state(), best=best)
    checkpoints.close()
    if restored is None:
        raise CheckpointError(f"no checkpoints in {checkpoints.directory}")
    if restored.extra["data"] != run.task.data:
        console.print(
            f"warning: trained on other data ({restored.extra['data']}) than is there now "
            f"({run.task.data})",
            soft_wrap=True,
        )
    return run, restored


def stops(
    run: Run, budgets: Sequence[int] | None, rtols: Sequence[float] | None
) -> dict[str, Sequence[Any]]:
    """Where to stop the solves of ``run``: as asked, else (None) as its report does.

    Raises:
      ConfigError: for values out of range, budgets that the solver cannot stop at, or nothing.
    """
    for name, values in (("budgets", budgets), ("rtols", rtols)):
        rule = ">= 1" if name == "budgets" else "in (0, 1)"
        for value in values or ():
            if not (value >= 1 if name == "budgets" else 0 < value < 1):
                raise ConfigError(f"{name} must be {rule}; got {value}")
    if run.implicit:
        solver = run.model.solver
        per_step = stopping.evaluations_per_step(solver)
        missed = [b for b in budgets or () if per_step is None or b % per_step]
        if missed:
            rule = "empty, its steps differ" if per_step is None else f"multiples of {per_step}"
            raise ConfigError(f"budgets must be {rule} for {solver}; got {missed[0]}")
        if budgets == () and rtols == ():
            raise ConfigError("budgets and rtols must not both be empty")
    loop = run.config.loop
    return {
        "budgets": loop.budgets if budgets is None else budgets,
        "rtols": loop.rtols if rtols is None else rtols,
    }
