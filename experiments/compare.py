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
from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdirs: tuple[pathlib.Path, ...]
    """Directories of finished runs of experiments.train."""


def run(arguments: Arguments) -> int:
    """Read the reports, print one row a configuration."""
    groups: dict[ExperimentConfig, list[dict]] = {}
    for directory in arguments.workdirs:
        config = read_config(directory / workdir.CONFIG_FILE)
        report = workdir.read_report(directory)
        if report is None:
            raise ConfigError(
                f"{directory} holds no finished run: {workdir.REPORT_FILE} is missing"
            )
        groups.setdefault(dataclasses.replace(config, seed=0), []).append(report)
    first = [reports[0]["test"][0] for reports in groups.values()]
    quality = "bits_per_byte" if "bits_per_byte" in first[0] else "accuracy"
    if any(("bits_per_byte" in row) != (quality == "bits_per_byte") for row in first):
        raise ConfigError("workdirs must hold runs on text, or on images, not both")
    stops = list(
        dict.fromkeys(row["stop"] for (report, *_) in groups.values() for row in report["test"])
    )
    scale, unit, digits = {
        "accuracy": (100, "accuracy in %", 2),
        "bits_per_byte": (1, "bits per byte", 3),
    }[quality]
    print(f"{unit}, mean +- standard deviation over seeds\n")
    heads = ["solver", "gradient", "gamma", "seeds", *stops]
    heads += ["nfe at the last", "spectral radius", "train s"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for config, reports in groups.items():
        cells = [config.solver.kind, config.gradient.kind, f"{config.regularizer.gamma:g}"]
        cells.append(", ".join(str(report["seed"]) for report in reports))
        rows = [{row["stop"]: row for row in report["test"]} for report in reports]
        for stop in stops:  # a solver may have no row at some stop
            found = [scale * row[stop][quality] for row in rows if stop in row]
            cells.append(_spread(found, digits) if found else "")
        cells.append(_spread([report["test"][-1]["nfe_forward"] for report in reports]))
        radii = [report["spectral_radius_mean"] for report in reports]
        cells.append("" if None in radii else _spread(radii))  # explicit models have none
        cells.append(_spread([report["train_seconds"] for report in reports], digits=0))
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
