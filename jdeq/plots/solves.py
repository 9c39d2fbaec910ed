"""Solves and what becomes of a model that stops early."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from jdeq.plots.parts import QUALITIES, Record, finish


def residual_trace(
    trace: Float[np.ndarray, "max_steps batch"],
    *,
    ax: Axes,
    label: str = "median",
    rtol: float | None = None,
) -> Axes:
    """Relative residual by evaluation: the median sample, and the band of 5% to 95% of them.

    Args:
      trace: `jdeq.Solution.trace`; after a sample's end, where it is NaN, its last residual stands.
      label: of the median.
      rtol: drawn as a line.
    """
    trace = np.array(trace, float)
    trace = trace[: 1 + np.flatnonzero(np.isfinite(trace).any(axis=1)).max(initial=0)]
    for row in range(1, len(trace)):
        trace[row] = np.where(np.isfinite(trace[row]), trace[row], trace[row - 1])
    low, median, high = np.percentile(trace, [5, 50, 95], axis=1)
    evaluations = np.arange(1, 1 + len(trace))
    (line,) = ax.semilogy(evaluations, median, marker="o", ms=3, label=label)
    ax.fill_between(evaluations, low, high, color=line.get_color(), alpha=0.2, lw=0)
    if rtol is not None:
        ax.axhline(rtol, color="0.4", lw=0.8, ls="--", label=f"rtol {rtol:g}")
    return finish(ax, "relative residual", "steps of the solver")


def budget_curve(
    rows: Sequence[Record],
    *,
    ax: Axes,
    label: str = "test",
    quality: Literal["accuracy", "mean_iou", "bits_per_byte", "word_perplexity"] = "accuracy",
) -> Axes:
    """``quality`` at hard stops, accuracy and mean IoU in percent: rows with "budget" and that
    measure.
    """
    budgets = [row["budget"] for row in rows]
    scale, name = QUALITIES[quality]
    ax.plot(budgets, [scale * row[quality] for row in rows], marker="o", ms=4, label=label)
    ax.set_xticks(budgets)
    return finish(ax, name, "evaluations of the cell, hard stop")
