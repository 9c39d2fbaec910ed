"""A run of experiments.train, read back: what the commands that come after training share."""

import functools
import pathlib

from rich.console import Console

from experiments import workdir
from experiments.build import Run, build
from experiments.config_files import read_config
from jdeq.training import CheckpointError, Checkpoints, Restored


def load(directory: pathlib.Path, console: Console) -> tuple[Run, Restored]:
    """The run in ``directory``, finished or not, and its newest readable checkpoint; changes
    nothing.

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
    restored = checkpoints.restore(run.abstract_state())
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
