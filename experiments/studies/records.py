"""What is kept of a run: its configuration, its report, and its metrics as CSV, a few KB in all."""

import dataclasses
import json
import pathlib
from typing import Any

from experiments import workdir
from experiments.tables import read_rows, write_rows
from jdeq.training import read_metrics

AFTER = ("step_time", "leak")
"""Commands of experiments that measure a finished run and leave NAME.json in its folder."""
_KINDS = {
    "train": (
        "loss_nats",
        "accuracy",
        "nfe_forward",
        "nfe_backward",
        "residual_mean",
        "residual_max",
        "residual_backward",
        "count_skipped",
        "step_seconds",
    ),
    "test": ("loss_nats", "accuracy", "bits_per_byte", "mean_iou", "nfe_forward", "residual_mean"),
    "spectrum": (
        "spectral_radius_mean",
        "spectral_radius_max",
        "jacobian_norm_mean",
        "rayleigh_quotient_mean",
        "rayleigh_quotient_max",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run."""

    config: dict[str, Any]
    report: dict[str, Any]
    metrics: dict[str, list[dict[str, float]]]
    """By kind ("train", "test", "spectrum"): a dict with "step" and numbers for each record."""

    def at(self, stop: str) -> dict[str, Any] | None:
        """The row of the report with this stop."""
        return next((row for row in self.report["test"] if row["stop"] == stop), None)


def keep(run: pathlib.Path, record: pathlib.Path) -> bool:
    """Write what is kept of a run folder into another; False if the run is not finished."""
    report = workdir.read_report(run)
    if report is None:
        return False
    record.mkdir(parents=True, exist_ok=True)
    for name in AFTER:
        if (measured := run / f"{name}.json").exists():
            report[name] = json.loads(measured.read_text())
    config = json.loads((run / workdir.CONFIG_FILE).read_text())
    for name, values in ((workdir.CONFIG_FILE, config), (workdir.REPORT_FILE, _rounded(report))):
        workdir.write_text(record / name, json.dumps(values, indent=1) + "\n")
    metrics = read_metrics(run / workdir.METRICS_FILE)
    for kind, names in _KINDS.items():
        found = [r for r in metrics if r["kind"] == kind]
        held = [n for n in ("step", *names) if any(n in r for r in found)]
        if found:
            rows = [{name: r.get(name) for name in held} for r in found]
            # Of training all that float32 has: runs on several devices differ in the last digits.
            write_rows(record / f"{kind}.csv", rows, digits=8 if kind == "train" else 4)
    return True


def read(record: pathlib.Path) -> Record | None:
    """What `keep` wrote; None if there is nothing.

    Raises:
      ValueError: for a file that cannot be read.
    """
    if not (record / workdir.REPORT_FILE).exists():
        return None
    return Record(
        config=json.loads((record / workdir.CONFIG_FILE).read_text()),
        report=json.loads((record / workdir.REPORT_FILE).read_text()),
        metrics={
            kind: read_rows(path) if (path := record / f"{kind}.csv").exists() else []
            for kind in _KINDS
        },
    )


def _rounded(tree: Any) -> Any:
    """Floats to six digits."""
    if isinstance(tree, dict):
        return {name: _rounded(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_rounded(value) for value in tree]
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree
