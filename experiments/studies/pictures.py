"""Pictures of studies: which numbers, and how they are drawn.

Over seeds a line is the median, its band reaches from the smallest to the largest. A seed that is
not finite counts as infinite: it is not left out, which would show a variant by the seeds that
did well. A cross marks where the median stops being finite.
"""

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.columns import at
from experiments.studies.records import Record
from experiments.studies.study import Picture, Records, Row

_OF_SEEDS = "Median and range of the seeds; a seed that is not finite counts as infinite."
_CROSS = "A cross: the median is not finite from there on."


class Panel(NamedTuple):
    """One pair of axes."""

    kind: str
    name: str
    label: str
    log: bool = False
    line: float | None = None  # a level to be marked
    largest: float | None = None  # where the axis ends


RESIDUALS = (
    Panel("train", "residual_mean", "forward residual, relative", log=True),
    Panel("train", "residual_backward", "backward residual, largest", log=True),
)
JACOBIAN_NORM = Panel("spectrum", "jacobian_norm_mean", "Frobenius norm of the Jacobian", log=True)
SPECTRAL_RADIUS = Panel("spectrum", "spectral_radius_mean", "spectral radius", log=True, line=1.0)


def curves(name: str, caption: str, panels: Sequence[Panel]) -> Picture:
    """Metrics over training steps, a line a variant."""
    return Picture(
        name=name,
        caption=f"{caption} {_OF_SEEDS} {_CROSS}",
        rows=functools.partial(_curve_rows, panels),
        draw=functools.partial(_draw_curves, panels),
    )


def _curve_rows(panels: Sequence[Panel], records: Records) -> list[Row]:
    rows = []
    for variant, runs in records.items():
        for panel in panels:
            values: dict[int, list[float]] = {}
            for run in runs:
                for record in run.metrics[panel.kind]:
                    value = record.get(panel.name, math.nan)
                    values.setdefault(int(record["step"]), []).append(value)
            begun = False
            for step, found in values.items():
                # On a logarithmic axis 0 is no value: before there are backward solves.
                known = not all(math.isnan(v) or panel.log and v == 0 for v in found)
                lost = begun and all(map(math.isnan, found))
                if known or lost:
                    row = {"variant": variant.label, "quantity": panel.name, "step": step}
                    rows.append(row | _of_seeds(found))
                begun = begun or known
    return rows


def _of_seeds(values: Sequence[float]) -> Row:
    counted = [math.inf if math.isnan(value) else value for value in values]
    return {
        "median": float(statistics.median(counted)),
        "smallest": float(min(counted)),
        "largest": float(max(counted)),
    }


def _draw_curves(panels: Sequence[Panel], rows: Sequence[Row]) -> Figure:
    figure, axes = _figure(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        mine = [row for row in rows if row["quantity"] == panel.name]
        for label in dict.fromkeys(row["variant"] for row in rows):
            _line(ax, [row for row in mine if row["variant"] == label], "step", label)
        if panel.line is not None:
            ax.axhline(panel.line, color="0.4", lw=0.8, ls="--")
        if panel.log and mine:
            ax.set_yscale("log")
        elif panel.largest is None:
            ax.set_ylim(bottom=0)
        if panel.largest is not None:
            ax.set_ylim(top=panel.largest)
        _finish(ax, panel.label, "training step")
    axes[0].legend(fontsize="small", frameon=False)
    return figure


def quality_over_time(name: str, caption: str, *, measure: str, label: str) -> Picture:
    """Quality on the test examples over seconds of training."""

    def rows(records: Records) -> list[Row]:
        out = []
        for variant, runs in records.items():
            values: dict[int, list[float]] = {}
            for run in runs:
                for record in run.metrics["test"]:
                    values.setdefault(int(record["step"]), []).append(record[measure])
            timed = next((run for run in runs if "step_time" in run.report), runs[0])
            for step, found in values.items():
                out.append(
                    {"variant": variant.label, "step": step, "seconds": seconds_until(timed, step)}
                    | _of_seeds(found)
                )
        return out

    def draw(rows: Sequence[Row]) -> Figure:
        figure, (ax,) = _figure(1)
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == variant]
            _line(ax, mine, "seconds", variant, marker="o", ms=3)
        ax.set_xscale("log")
        ax.legend(fontsize="small", frameon=False)
        _finish(ax, label, "training time (s)")
        return figure

    caption = f"{caption} {_OF_SEEDS} {_CROSS}"
    return Picture(name=name, caption=caption, rows=rows, draw=draw)


def seconds_until(record: Record, step: int) -> float:
    """What training took until a step: from the times of its steps alone, where they were taken,
    else as they were beside whatever else ran.
    """
    alone, config = record.report.get("step_time"), record.config
    if alone is None:
        begin, total = 0, 0.0
        for row in record.metrics["train"]:
            if row["step"] <= step:
                total += (row["step"] - begin) * row["step_seconds"]
                begin = row["step"]
        return total
    before = min(step, config["pretrain"]["steps"])
    regularizer = config["regularizer"]
    share = regularizer["probability"] if regularizer["gamma"] else 0.0
    penalized = alone["plain"] if alone["penalized"] is None else alone["penalized"]
    mean = (1 - share) * alone["plain"] + share * penalized
    return before * (alone["pretrain"] or 0.0) + (step - before) * mean


class Bar(NamedTuple):
    """One group of bars: what is measured of a run, None where it has none."""

    name: str
    label: str
    value: Callable[[Record], float | None]


def bars(name: str, caption: str, groups: Sequence[Bar]) -> Picture:
    """One panel a measure, one bar a variant; lower is better."""

    def rows(records: Records) -> list[Row]:
        out = []
        for variant, runs in records.items():
            for group in groups:
                found = [v for run in runs if (v := group.value(run)) is not None]
                if found:
                    row = {"variant": variant.label, "quantity": group.name}
                    out.append(row | _of_seeds(found))
        return out

    def draw(rows: Sequence[Row]) -> Figure:
        labels = list(dict.fromkeys(row["variant"] for row in rows))
        figure, axes = _figure(len(groups), width=max(3.2, 0.8 * len(labels)))
        for ax, group in zip(axes, groups, strict=True):
            found = {row["variant"]: row for row in rows if row["quantity"] == group.name}
            for place, variant in enumerate(labels):
                _bar(ax, place, found.get(variant))
            ax.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize="small")
            ax.set_xlim(-0.6, len(labels) - 0.4)  # a variant without a bar has its place, too
            ax.margins(y=0.16)
            _finish(ax, group.label, "")
        return figure

    caption = f"{caption} {_OF_SEEDS}"
    return Picture(name=name, caption=caption, rows=rows, draw=draw)


def error(record: Record) -> float:
    """In percent, as the run was trained."""
    row = at(record, "as trained")
    assert row is not None
    return 100 * (1 - row["accuracy"])


def text_quality(record: Record) -> float:
    """Bits per byte, as the run was trained."""
    row = at(record, "as trained")
    assert row is not None
    return row["bits_per_byte"]


def step_milliseconds(record: Record) -> float | None:
    """Of the mean training step alone, pre-training left out."""
    if "step_time" not in record.report:
        return None
    start = record.config["pretrain"]["steps"]
    return 1000 * (seconds_until(record, start + 1) - seconds_until(record, start))


def evaluations(record: Record) -> float | None:
    """Forward and backward, of the last training steps; None of an explicit model."""
    if record.at("explicit") is not None:
        return None
    row = record.metrics["train"][-1]
    return row["nfe_forward"] + row["nfe_backward"]


def _bar(ax: Any, place: int, row: Row | None) -> None:
    """The median as a bar, the range as a whisker, both in words above it; "-" for no row."""
    if row is None:
        ax.annotate("-", (place, 0), xytext=(0, 4), textcoords="offset points", ha="center")
        return
    middle, low, high = (row[name] for name in ("median", "smallest", "largest"))
    text = f"{middle:.3g}" if low == high else f"{middle:.3g}\n{low:.3g} to {high:.3g}"
    # No bar can show what is infinite, the words do.
    low, middle = (0.0, 0.0) if math.isinf(middle) else (low, middle)
    high = middle if math.isinf(high) else high
    reach = [[middle - low], [high - middle]] if low < high else None
    ax.bar(place, middle, color=f"C{place}", yerr=reach, capsize=3)
    offset = {"xytext": (0, 4), "textcoords": "offset points"}
    ax.annotate(text, (place, high), **offset, ha="center", fontsize="x-small")


def _line(ax: Any, rows: Sequence[Row], x: str, label: str, **style: Any) -> None:
    """The median over ``x`` with its band; a cross where it stops being finite."""
    places = np.array([row[x] for row in rows])
    medians = np.array([row["median"] for row in rows])
    (line,) = ax.plot(places, medians, label=label, lw=1.3, **style)
    known = np.isfinite(medians)
    if known.any() and (last := places[known][-1]) < places[-1]:
        cross = {"color": line.get_color(), "ms": 8, "mew": 2, "zorder": 5}
        ax.plot(last, medians[known][-1], "x", **cross)
    elif len(places) and not known.any():
        line.set_label(f"{label} (never finite)")
    low, high = (np.array([row[end] for row in rows]) for end in ("smallest", "largest"))
    band = {"color": line.get_color(), "alpha": 0.2, "lw": 0}
    finite = np.isfinite(high)
    ax.fill_between(places, low, np.where(finite, high, np.nan), **band)
    # A band up to infinity leaves the axes at their top, and does not move it.
    limits = ax.dataLim.frozen()
    ends = np.array([(x, v) for x, v in zip(places, low, strict=True) if math.isfinite(v)])
    if len(ends):
        limits.update_from_data_xy(ends, ignore=False)
    known = [v for ends in (low, high) for v in ends if math.isfinite(v)]
    ax.fill_between(places, low, 1000 * max([1.0, *known]), where=~finite, **band)
    ax.dataLim.set(limits)


def _figure(panels: int, width: float = 4.8) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * panels, 3.6), dpi=120, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, sharex=True)[0]


def _finish(ax: Any, ylabel: str, xlabel: str) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
