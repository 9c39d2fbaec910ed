"""Columns of tables: what is written of the runs of several seeds."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.studies.records import Record
from experiments.tables import spread

Column = tuple[str, Callable[[Sequence[Record]], str]]
_SCALES = {"accuracy": (100, 2), "mean_iou": (100, 2), "bits_per_byte": (1, 3)}


def seeds() -> Column:
    """Which there are."""
    return "seeds", lambda records: ", ".join(str(r.report["seed"]) for r in records)


def quality(stop: str, measure: str, head: str | None = None) -> Column:
    """``measure`` at a stop of the report, in percent if it is a share; "as trained" is
    a stop, too.
    """
    scale, digits = _SCALES[measure]

    def cell(records: Sequence[Record]) -> str:
        found = [row for r in records if (row := at(r, stop)) is not None]
        return spread([scale * row[measure] for row in found], digits) if found else "-"

    return head or stop, cell


def solved(stop: str, measure: str, head: str, *, scale: float = 1, digits: int = 1) -> Column:
    """Another number of a stop, as its "nfe_forward" or "converged"."""

    def cell(records: Sequence[Record]) -> str:
        found = [r.at(stop) for r in records]
        values = [scale * row[measure] for row in found if row is not None and measure in row]
        return spread(values, digits) if values else "-"

    return head, cell


def at(record: Record, stop: str) -> dict[str, Any] | None:
    """The row of a stop; "as trained": an explicit model's, or that after the training budget."""
    if stop != "as trained":
        return record.at(stop)
    if (explicit := record.at("explicit")) is not None:
        return explicit
    evaluations = record.config["solver"]["max_steps"]
    evaluations *= 2 if record.config["solver"]["kind"] == "reversible" else 1
    budgets = [row for row in record.report["test"] if row.get("budget", math.inf) <= evaluations]
    return budgets[-1] if budgets else None


def reported(name: str, head: str, *, digits: int = 2) -> Column:
    """A number of the report."""

    def cell(records: Sequence[Record]) -> str:
        values = [r.report[name] for r in records]
        if None in values:
            return "-"
        if len(set(values)) == 1:
            return f"{values[0]:,.{digits}f}"
        return spread(values, digits)

    return head, cell


def last(kind: str, name: str, head: str, *, digits: int = 2) -> Column:
    """The last record of a metric."""

    def cell(records: Sequence[Record]) -> str:
        rows = [r.metrics[kind][-1] for r in records if r.metrics[kind]]
        values = [row[name] for row in rows if name in row]
        return spread(values, digits) if values else "-"

    return head, cell


def evaluations() -> Column:
    """Mean evaluations forward and products backward of the last training steps."""

    def cell(records: Sequence[Record]) -> str:
        if "explicit" in {row["stop"] for row in records[0].report["test"]}:
            return "-"
        means = [
            statistics.fmean(r.metrics["train"][-1][name] for r in records)
            for name in ("nfe_forward", "nfe_backward")
        ]
        return " / ".join(f"{mean:.1f}" for mean in means)

    return "nfe of a training step, forward / backward", cell


def step_alone() -> Column:
    """Milliseconds of a training step with nothing else running, without and with the penalty."""

    def cell(records: Sequence[Record]) -> str:
        times = [r.report["step_time"] for r in records if "step_time" in r.report]
        if not times:
            return "-"
        values = [times[0]["plain"], times[0]["penalized"]]
        return " / ".join(f"{1000 * value:.1f}" for value in values if value is not None)

    return "step alone, first seed, plain / penalised (ms)", cell
