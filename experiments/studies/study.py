"""What a study is: the runs it needs and what it shows of them."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.records import Record

Records = Mapping["Variant", Sequence[Record]]
"""The runs of each variant that there are records of, by seed."""
Row = dict[str, Any]


def environment(devices: int | None) -> dict[str, str]:
    """Of a process that has so many devices of a CPU; None: those of the machine."""
    if devices is None:
        return {}
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One run of experiments.train; the same in whatever study it is needed."""

    run: str
    overrides: tuple[str, ...] = ()
    seed: int = 0
    devices: int | None = None
    """Of a CPU, simulated; None: those of the machine."""

    @property
    def folder(self) -> str:
        """Where it lives: its run, its devices, what is overridden, its seed."""
        parts = [self.run, *([] if self.devices is None else [f"devices={self.devices}"])]
        for word in self.overrides:
            if word.startswith("--"):
                parts.append(word.removeprefix("--"))
            else:
                parts[-1] += f"={word}"
        return ",".join([*parts, f"seed={self.seed}"])

    def arguments(self, runs: pathlib.Path | str) -> list[str]:
        """Of experiments.train."""
        place = ["--workdir", str(pathlib.Path(runs) / self.folder)]
        return [self.run, *place, *self.overrides, "--seed", str(self.seed)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of a study's tables: a run and its overrides, with several seeds."""

    label: str
    run: str
    overrides: tuple[str, ...] = ()
    devices: int | None = None
    """Of a CPU, simulated; None: those of the machine."""
    published: str = ""
    """What stands beside it in the paper."""

    def named(self, label: str) -> "Variant":
        """The same runs under another label."""
        return dataclasses.replace(self, label=label)

    def training(self, seed: int) -> Training:
        """The run with that seed."""
        return Training(run=self.run, overrides=self.overrides, seed=seed, devices=self.devices)

    @property
    def command(self) -> str:
        """How to train it."""
        simulated = [f"{name}={value}" for name, value in environment(self.devices).items()]
        train = ["python -m experiments.train", self.run, "--workdir", "DIR"]
        return " ".join([*simulated, *train, *self.overrides])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A row a variant."""

    columns: Sequence[tuple[str, Callable[[Sequence[Record]], str]]]
    """Headings, and what is written of the seeds' runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """A table whose rows are not the variants."""

    rows: Callable[[Records], list[dict[str, str]]]
    """By heading, what is written; every row has the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure, and the numbers in it."""

    name: str
    caption: str
    rows: Callable[[Records], list[Row]]
    """For the CSV file beside the picture."""
    draw: Callable[[Sequence[Row]], Figure]
    """From the rows of that file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Runs, and what they show."""

    name: str
    title: str
    about: str
    """What it reproduces, and what the paper has."""
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tables: tuple[Table | Listing, ...] = ()
    pictures: tuple[Picture, ...] = ()
    found: str = ""
    """What came out, in words."""
    after: tuple[str, ...] = ()
    """Of records.AFTER: what is measured of the finished runs of the first seed, one at a time."""

    def trainings(self) -> list[Training]:
        """All runs, the first seed of each variant first."""
        return [variant.training(seed) for seed in self.seeds for variant in self.variants]
