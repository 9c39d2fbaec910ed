"""results.json, table.md and, where matplotlib is installed, bars.png."""

import importlib.util
import json
import math
import textwrap
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.bench.harness import Result, quartiles, ratios
from experiments.provenance import manifest


def row(result: Result, results: list[Result]) -> dict[str, Any]:
    """One case as plain values; times in milliseconds."""
    values: dict[str, Any] = {
        "group": result.case.group,
        "name": result.case.name,
        "error": result.error,
        **result.counts,
        **result.facts,
        "compile_seconds": result.compile_seconds,
        "temp_mib": result.temp_mib,
        "argument_mib": result.argument_mib,
    }
    if result.seconds:
        reference = ratios(result, results)
        for key, samples in (("ms", [1e3 * s for s in result.seconds]), ("ratio", reference)):
            if samples:
                middle, low, high = quartiles(samples)
                values |= {key: middle, f"{key}_low": low, f"{key}_high": high}
        values |= {"reference": result.case.reference, "rounds": len(result.seconds)}
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


COLUMNS = {
    "ms": ("ms", ".2f"),
    "iqr": ("quartiles", ""),
    "ratio": ("ratio", ".2f"),
    "per_second": ("a second", ",.0f"),
    "flops_ratio": ("FLOPs ratio", ".2f"),
    "tflop": ("TFLOP", ".3g"),
    "utilisation": ("of the peak", ".1%"),
    "parameters": ("parameters", ",d"),
    "evaluations": ("nfe", "d"),
    "products": ("products", "d"),
    "jvps": ("jvps", "d"),
    "temp_mib": ("MiB", ".2f"),
    "temp_ratio": ("MiB, DEQ 12/12 = 1", ".2f"),
    "states": ("MiB in states", ".1f"),
    "argument_mib": ("arguments MiB", ".2f"),
    "peak_mib": ("device peak MiB", ".0f"),
    "trace_seconds": ("trace and lower s", ".2f"),
    "compile_seconds": ("compile s", ".2f"),
    "residual_worst_sample": ("residual, worst sample", ".1e"),
    "residual_batch": ("residual, batch", ".1e"),
    "gradient_error": ("gradient error", ".1e"),
    "error_anchors": ("float32, anchors", ".1e"),
    "error_no_anchors": ("float32, none", ".1e"),
    "error_float64": ("float64, none", ".1e"),
    "error_backprop": ("backpropagation", ".1e"),
    "error_asked": ("asked", ".1e"),
    "anchor_every": ("anchor every", "d"),
    "error": ("", ""),
}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the columns that any of the rows has."""

    def cell(values, key, form):
        if key == "iqr":
            return f"{values['ms_low']:.2f}-{values['ms_high']:.2f}" if "ms_low" in values else ""
        value = values.get(key)
        return "" if value is None else format(value, form)

    cells = {k: [cell(values, k, form) for values in rows] for k, (_, form) in COLUMNS.items()}
    shown = [k for k in COLUMNS if any(cells[k])]
    return tables.markdown(
        ["entry", *(COLUMNS[k][0] for k in shown)],
        ([v["name"], *(cells[k][index] for k in shown)] for index, v in enumerate(rows)),
    )


def markdown(
    title: str, about: dict[str, Any], rows: list[dict[str, Any]], notes: list[str]
) -> str:
    """The whole report: where it was measured, one table a group, then the notes."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [
        f"# {title}",
        f"{versions}; {about['devices']} x {about['device']}, {about['cpu_cores']} CPU cores, "
        f"load {about['load_average']:.1f}; commit {about['commit']}"
        + (f"; XLA_FLAGS={flags}" if (flags := about["xla_flags"]) else "")
        + (f"; matmul precision {precision}" if (precision := about["matmul_precision"]) else ""),
    ]
    for group in dict.fromkeys(values["group"] for values in rows):
        mine = [values for values in rows if values["group"] == group]
        reference = next((v["reference"] for v in mine if "reference" in v), None)
        same = all(v.get("reference", reference) == reference for v in mine)
        parts.append(
            f"## {group}"
            + (f"\nratio: time over that of {reference}" if same and reference else "")
        )
        parts.append(table(mine))
    if notes:
        parts.append("## Notes\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def plot(path: Path, rows: list[dict[str, Any]], groups: list[str]) -> None:
    """Bars of the median times with their quartiles, one panel a group."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(groups), 6), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        mine = [values for values in rows if values["group"] == group and "ms" in values]
        mine.sort(key=lambda values: -values["ms"])
        middle = [values["ms"] for values in mine]
        spread = [
            [values["ms"] - values["ms_low"] for values in mine],
            [values["ms_high"] - values["ms"] for values in mine],
        ]
        colors = ["tab:blue" if v["name"].startswith("jdeq") else "tab:gray" for v in mine]
        axis.barh([v["name"] for v in mine], middle, xerr=spread, color=colors)
        # Bars of a logarithmic axis have no length to compare: only where they would vanish.
        wide = bool(middle) and middle[0] > 30 * middle[-1]
        scale = "log" if wide else "linear"
        axis.set(title=textwrap.fill(group, 36), xlabel="ms", xscale=scale)
    figure.savefig(path, dpi=120)


def write(
    out: Path,
    suite: str,
    results: list[Result],
    notes: list[str],
    settings: dict[str, Any],
    plotted: list[str],
) -> None:
    """Write the report of a suite into the folder ``out``."""
    about, rows = manifest(), [row(result, results) for result in results]
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "suite": suite,
        "manifest": about,
        "settings": settings,
        "cases": rows,
        "notes": notes,
    }
    (out / "results.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    (out / "table.md").write_text(markdown(f"Benchmark: {suite}", about, rows, notes))
    if plotted and importlib.util.find_spec("matplotlib"):
        plot(out / "bars.png", rows, plotted)
