"""Runs side by side, seeds averaged: ``python -m experiments.compare --workdirs DIR DIR ...``.

Prints a Markdown table; runs whose configurations differ in nothing but the seed share a row.
"""

import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Sequence

import tyro

from experiments import workdir
from experiments.cli import guarded
from experiments.config import ConfigError, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdirs: tuple[pathlib.Path, ...]
    """Directories of finished runs of experiments.train."""


def run(arguments: Arguments) -> int:
    """Read the reports, print one row a configuration."""
    groups: dict[str, list[tuple[dict, float]]] = {}
    for directory in arguments.workdirs:
        config = read_config(directory / workdir.CONFIG_FILE)
        report = workdir.read_report(directory)
        if report is None:
            raise ConfigError(
                f"{directory} holds no finished run: {workdir.REPORT_FILE} is missing"
            )
        key = dataclasses.replace(config, seed=0).to_json()
        groups.setdefault(key, []).append((report, config.regularizer.gamma))
    stops = [row["stop"] for row in next(iter(groups.values()))[0][0]["test"]]
    print("accuracy in %, mean +- standard deviation over seeds\n")
    heads = ["gamma", "seeds", *stops, "nfe at the last", "spectral radius", "train s"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for members in groups.values():
        reports = [report for report, _ in members]
        cells = [f"{members[0][1]:g}", ", ".join(str(r["seed"]) for r in reports)]
        for i in range(len(stops)):
            cells.append(_spread([100 * r["test"][i]["accuracy"] for r in reports]))
        cells.append(_spread([r["test"][-1]["nfe_forward"] for r in reports]))
        cells.append(_spread([r["spectral_radius_mean"] for r in reports]))
        cells.append(_spread([r["train_seconds"] for r in reports], digits=0))
        print("| " + " | ".join(cells) + " |")
    return 0


def _spread(values: Sequence[float], digits: int = 2) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} +- {deviation:.{digits}f}"


def main() -> int:
    """Entry point."""
    arguments = tyro.cli(Arguments, description=__doc__)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
