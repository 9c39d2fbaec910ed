"""Look into a trained model: ``python -m experiments.inspect --workdir DIR [--rtols 1e-2 ...]``.

Evaluations and residuals of the test examples at tolerances, the convergence of each solver, the
spectrum of the cell's Jacobian, the gradient of each rule beside that of a tight solve, and what
the next cheaper setting would lose. Prints tables, and writes the page index.html, which opens
without a server, and numbers.json into DIR/inspect. Changes nothing else in DIR.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from rich.console import Console

from experiments import trained, workdir
from experiments.build import Run
from experiments.cli import command
from experiments.config import ConfigError
from experiments.inspection import page
from experiments.inspection.findings import as_json, measure
from experiments.inspection.tables import grids

PAGE, NUMBERS = "index.html", "numbers.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train."""
    best: bool = False
    """The best of the checkpoints that were tested while training, in place of the newest."""
    rtols: tuple[float, ...] | None = None
    """Tolerances that each test example is solved to; None: those of the run's report."""
    examples: int = 16
    """Test examples (of text: windows) of the curves, the spectrum and the gradients."""
    out: pathlib.Path | None = None
    """Where to write; None: inspect/ in the workdir."""


def run(arguments: Arguments) -> int:
    """Restore, measure, print, write."""
    console = Console(highlight=False)
    loaded, restored = trained.load(arguments.workdir, console, best=arguments.best)
    rtols, examples = _checked(loaded, arguments)
    out = _writable(arguments.out or arguments.workdir / "inspect")
    found = measure(
        loaded,
        restored.state.averaged_variables,
        step=int(restored.state.step),
        rtols=rtols,
        examples=examples,
        say=functools.partial(console.print, soft_wrap=True, markup=False),
    )
    notes = page.captions(found)
    for section, grid in grids(found).items():
        console.print()
        grid.show(console)
        for warning in notes[section][1:]:
            console.print(f"note: {warning}", soft_wrap=True)
    console.print(f"\n{found.advice}", soft_wrap=True)
    workdir.write_text(out / NUMBERS, json.dumps(as_json(found), indent=2) + "\n")
    name = arguments.workdir.resolve().name
    workdir.write_text(out / PAGE, page.render(found, name=name))
    console.print(f"written: {out / PAGE}, {out / NUMBERS}", soft_wrap=True)
    return 0


def _checked(loaded: Run, arguments: Arguments) -> tuple[Sequence[float], int]:
    """The tolerances and the number of examples, where they can be."""
    if not loaded.implicit:
        kind = type(loaded.model).__name__
        raise ConfigError(f"workdir must hold a run with an equilibrium; a {kind} is explicit")
    if arguments.rtols == ():
        raise ConfigError("rtols must not be empty")
    most = len(loaded.task.test.labels)
    if not 1 <= arguments.examples <= most:
        raise ConfigError(f"examples must be in 1..{most}; got {arguments.examples}")
    return trained.stops(loaded, None, arguments.rtols)["rtols"], arguments.examples


def _writable(directory: pathlib.Path) -> pathlib.Path:
    """The directory, made if it is not there; found out before anything is measured."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise ConfigError(
            f"out must be a directory that can be written; got {directory} ({error.strerror})"
        ) from error
    return directory


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("inspect", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
