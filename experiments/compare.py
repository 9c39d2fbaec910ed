"""Runs side by side, seeds averaged: ``python -m experiments.compare --workdirs DIR DIR ...``.

Prints a Markdown table; runs whose configurations differ in nothing but the seed share a row.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from experiments import workdir
from experiments.cli import command
from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import flatten, read_config
from experiments.tables import markdown, spread

_QUALITIES = {  # scale, name and digits of the measure that a task is judged by
    "word_perplexity": (1, "perplexity a word", 2),
    "bits_per_byte": (1, "bits per byte", 3),
    "mean_iou": (100, "mean IoU in %", 2),  # its rows have an accuracy, too: that of the pixels
    "accuracy": (100, "accuracy in %", 2),
    "rmse": (1, "root of the mean squared error", 4),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdirs: tuple[pathlib.Path, ...]
    """Directories of finished runs of experiments.train."""


def run(arguments: Arguments) -> int:
    """Read the reports, print one row a configuration."""
    groups: dict[ExperimentConfig, list[dict]] = {}
    repeated = {d for d in arguments.workdirs if arguments.workdirs.count(d) > 1}
    if repeated:
        raise ConfigError(f"workdirs must differ; got {repeated.pop()} more than once")
    for directory in arguments.workdirs:
        config = read_config(directory / workdir.CONFIG_FILE)
        report = workdir.read_report(directory)
        if report is None:
            raise ConfigError(
                f"{directory} holds no finished run: {workdir.REPORT_FILE} is missing"
            )
        groups.setdefault(dataclasses.replace(config, seed=0), []).append(report)
    data = {report["data"] for reports in groups.values() for report in reports}
    if len(data) > 1:
        raise ConfigError(
            f"workdirs must hold runs on the same data; got {len(data)}: {', '.join(sorted(data))}"
        )
    row = next(iter(groups.values()))[0]["test"][0]
    quality = next(name for name in _QUALITIES if name in row)
    stops = list(
        dict.fromkeys(row["stop"] for (report, *_) in groups.values() for row in report["test"])
    )
    scale, unit, digits = _QUALITIES[quality]
    print(f"{unit}, mean +- standard deviation over seeds (each where they lie far apart)\n")
    others = _differing(list(groups))
    heads = ["solver", "gradient", "gamma", *others, "seeds", *stops]
    heads += ["nfe at the last", "spectral radius", "train s"]
    table = []
    for config, reports in groups.items():
        cells = [config.solver.kind, config.gradient.kind, f"{config.regularizer.gamma:g}"]
        fields = flatten(dataclasses.asdict(config))
        cells += [str(fields.get(name, "")) for name in others]
        cells.append(", ".join(str(report["seed"]) for report in reports))
        rows = [{row["stop"]: row for row in report["test"]} for report in reports]
        for stop in stops:  # a solver may have no row at some stop
            found = [scale * row[stop][quality] for row in rows if stop in row]
            cells.append(spread(found, digits) if found else "")
        cells.append(spread([report["test"][-1]["nfe_forward"] for report in reports]))
        radii = [report["spectral_radius_mean"] for report in reports]
        cells.append("" if None in radii else spread(radii))  # explicit models have none
        cells.append(spread([report["train_seconds"] for report in reports], digits=0))
        table.append(cells)
    print(markdown(heads, table))
    return 0


def _differing(configs: Sequence[ExperimentConfig]) -> list[str]:
    """The fields in which the configurations differ, besides those that have a column."""
    shown = ("solver.kind", "gradient.kind", "regularizer.gamma")
    flat = [flatten(dataclasses.asdict(config)) for config in configs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return [n for n in names if n not in shown and len({str(f.get(n)) for f in flat}) > 1]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("compare", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
