"""Train what studies need: ``python -m experiments.study NAME ... --runs DIR --jobs N``.

NAME is a study of experiments/studies/, ``stability`` for those of the stability paper, or
``all``; ``--list`` shows the runs. Each run is a process of experiments.train with a folder of
its own in DIR, where studies share it, and a log beside it; N at once, the first seeds first.
What is finished is not trained again, what was stopped goes on: the same command resumes. A run
that fails does not stop the others and is named at the end. SIGTERM and Ctrl-C are passed on,
and every run saves. In the end what else a study shows of trained runs is measured, one at a time
(experiments.step_time, experiments.leak).

Several processes share a GPU: with N > 1 they are told not to reserve its memory
(XLA_PYTHON_CLIENT_PREALLOCATE=false). Compiled programs are kept in DIR/compiled and shared by
seeds, unless JAX_COMPILATION_CACHE_DIR says where. ``python -m experiments.report --runs DIR``
comes next.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import tyro
from rich.console import Console

from experiments import train, workdir
from experiments.cli import command
from experiments.config import ConfigError
from experiments.studies import STABILITY, STUDIES, Study, Training
from experiments.studies.study import environment

_GROUPS = {"all": STUDIES, "stability": STABILITY}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """Studies, or "stability" or "all"."""
    runs: pathlib.Path
    """Directory of the run folders."""
    jobs: int = 1
    """Runs trained at once."""
    seeds: tuple[int, ...] | None = None
    """Only these; None: those of each study."""
    list: bool = False
    """Show the runs and whether they are finished; train nothing."""


def chosen(names: Sequence[str]) -> list[Study]:
    """The studies of these names, in the order of RESULTS.md.

    Raises:
      ConfigError: for none, or an unknown name.
    """
    known = {study.name: (study,) for study in STUDIES} | _GROUPS
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        said = repr(unknown[0]) if unknown else "none"
        raise ConfigError(f"NAME must be some of {', '.join(known)}; got {said}")
    wanted = {study.name for name in names for study in known[name]}
    return [study for study in STUDIES if study.name in wanted]


def needed(studies: Sequence[Study], seeds: Sequence[int] | None) -> list[Training]:
    """The runs of the studies, each once, by seed."""
    found = dict.fromkeys(
        training
        for study in studies
        for training in study.trainings()
        if seeds is None or training.seed in seeds
    )
    if not found:
        raise ConfigError(f"seeds must have one that the studies have; got {seeds}")
    return sorted(found, key=lambda training: training.seed)


def run(arguments: Arguments) -> int:
    """Train; returns 0 if all runs are finished then, 1 if one failed, 3 if it was stopped."""
    if arguments.jobs < 1:
        raise ConfigError(f"jobs must be >= 1; got {arguments.jobs}")
    studies = chosen(arguments.names)
    trainings = needed(studies, arguments.seeds)
    console = Console(highlight=False, soft_wrap=True)
    runs = arguments.runs
    if arguments.list:
        for training in trainings:
            state = "finished" if finished(training, runs) else "missing"
            console.print(f"{state}  {training.folder}")
        return 0
    runs.mkdir(parents=True, exist_ok=True)
    pool = Pool(runs, arguments.jobs, console)
    failed = pool.run([Command.training(t, runs) for t in trainings if not finished(t, runs)])
    if not pool.stopped:
        alone = Pool(runs, 1, console)
        failed += alone.run(_unmeasured(studies, trainings, runs))
        pool.stopped = alone.stopped
    for name in failed:
        console.print(f"failed: {name}, see {runs / (name + '.log')}")
    if pool.stopped:
        console.print("stopped; the same command goes on")
        return 3
    left = [t.folder for t in trainings if not finished(t, runs)]
    for name in left:
        console.print(f"not finished: {name}")
    return 1 if failed or left else 0


@dataclasses.dataclass(frozen=True)
class Command:
    """``python -m experiments.MODULE ARGUMENTS``.

    Args:
      name: what it and its log are called.
      module: of experiments.
      arguments: of the command line.
      devices: of a CPU, simulated; None: those of the machine.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    devices: int | None = None

    @classmethod
    def training(cls, training: Training, runs: pathlib.Path) -> "Command":
        """The run, in its folder of ``runs``."""
        return cls(training.folder, "train", tuple(training.arguments(runs)), training.devices)


class Pool:
    """Processes of experiments, ``jobs`` at once, that end when this one is told to.

    Args:
      runs: where folders and logs go.
      jobs: how many.
      console: what is told of them.
    """

    def __init__(self, runs: pathlib.Path, jobs: int, console: Console):
        self.runs, self._jobs, self._console = runs, jobs, console
        self._running: dict[str, tuple[subprocess.Popen, float]] = {}
        self._begin = time.monotonic()
        self.stopped = False

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        for process, _ in self._running.values():
            process.send_signal(signal.SIGTERM)

    def run(self, commands: Sequence[Command]) -> list[str]:
        """Returns the names of those that failed."""
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._stop) for number in signals}
        try:
            return self._run(commands)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, commands: Sequence[Command]) -> list[str]:
        left, failed, total, done = list(commands), [], len(commands), 0
        while self._running or (left and not self.stopped):
            while left and len(self._running) < self._jobs and not self.stopped:
                name = left[0].name
                self._running[name] = self._start(left.pop(0)), time.monotonic()
                if self.stopped:  # the signal came while it started, and was not passed on to it
                    self._running[name][0].send_signal(signal.SIGTERM)
            time.sleep(0.1)
            for name, (process, begin) in list(self._running.items()):
                code = process.poll()
                if code is None:
                    continue
                del self._running[name]
                done += 1
                if self.stopped and code == -signal.SIGTERM:
                    code = 0  # told to stop before it could listen
                if code:
                    failed.append(name)
                word = f"failed ({code})" if code else "stopped" if self.stopped else "finished"
                now = time.monotonic()
                self._console.print(
                    f"{now - self._begin:5.0f} s  {done}/{total}  {word} in {now - begin:.0f} s  "
                    f"{name}"
                )
        return failed

    def _start(self, command: Command) -> subprocess.Popen:
        env = {"JAX_COMPILATION_CACHE_DIR": str((self.runs / "compiled").resolve())} | os.environ
        if self._jobs > 1:
            env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | env
        env |= environment(command.devices)
        with (self.runs / f"{command.name}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"experiments.{command.module}", *command.arguments],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C comes to this process, which passes it on as one SIGTERM.
                start_new_session=True,
            )


def _unmeasured(
    studies: Sequence[Study], trainings: Sequence[Training], runs: pathlib.Path
) -> list[Command]:
    """What the studies show of finished runs of their first seed, where it is not there yet."""
    wanted = {
        (training, module): None
        for study in studies
        for training in study.trainings()[: len(study.variants)]
        for module in study.after
        if training in trainings and finished(training, runs)
    }
    return [
        Command(
            f"{training.folder}.{module}",
            module,
            ("--workdir", str(runs / training.folder)),
            training.devices,
        )
        for training, module in wanted
        if not (runs / training.folder / f"{module}.json").exists()
    ]


def finished(training: Training, runs: pathlib.Path) -> bool:
    """Whether ``runs`` holds the finished run.

    Raises:
      ConfigError: if it was trained with another configuration, or its report is an older one.
    """
    folder = runs / training.folder
    report = workdir.read_report(folder)
    if report is None:
        return False
    _, arguments = train.parse(training.arguments(runs))
    workdir.refuse_another(folder, arguments.config)
    missing = [name for name in ("wall_seconds", "provenance") if name not in report]
    if missing:
        raise ConfigError(
            f"{folder} was trained by an older version: its report has no {', '.join(missing)}; "
            "train it again, in another directory"
        )
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("study", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
