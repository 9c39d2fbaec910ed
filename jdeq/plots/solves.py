"""Solves: how they converge, the spectrum behind it, what a model is worth that stops early."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Complex, Float
from matplotlib.axes import Axes

from jdeq.plots.parts import QUALITIES, Record, finish


def residual_trace(
    trace: Float[np.ndarray, "max_steps batch"],
    *,
    ax: Axes,
    label: str = "median",
    rtol: float | None = None,
    per_step: float | None = None,
) -> Axes:
    """Relative residual by step: the median sample, and the band of 5% to 95% of them; without
    samples that have no residual.

    Args:
      trace: `jdeq.Solution.trace`; after a sample's end, where it is NaN, its last residual stands.
      label: of the median.
      rtol: drawn as a line.
      per_step: evaluations of the map in a step, to draw by evaluation; None: by step.
    """
    trace = np.array(trace, float)
    trace = trace[: 1 + np.flatnonzero(np.isfinite(trace).any(axis=1)).max(initial=0)]
    for row in range(1, len(trace)):
        trace[row] = np.where(np.isfinite(trace[row]), trace[row], trace[row - 1])
    measured = np.isfinite(trace).any(axis=0)  # not those that were not finite from the start
    trace = trace[:, measured] if measured.any() else np.full((len(trace), 1), np.nan)
    low, median, high = np.percentile(trace, [5, 50, 95], axis=1)
    taken = np.arange(1, 1 + len(trace)) * (1 if per_step is None else per_step)
    (line,) = ax.semilogy(taken, median, marker="o", ms=3, label=label)
    ax.fill_between(taken, low, high, color=line.get_color(), alpha=0.2, lw=0)
    if rtol is not None:
        ax.axhline(rtol, color="0.4", lw=0.8, ls="--", label=f"rtol {rtol:g}")
    xlabel = "steps of the solver" if per_step is None else "evaluations of the map"
    return finish(ax, "relative residual", xlabel)


def convergence(
    traces: Mapping[str, Float[np.ndarray, "max_steps batch"]],
    *,
    ax: Axes,
    rtol: float | None = None,
    per_step: Mapping[str, float] | None = None,
) -> Axes:
    """Relative residual by evaluation of several solvers: `residual_trace` of each.

    Args:
      traces: by the name of the solver.
      rtol: drawn as a line.
      per_step: evaluations of the map in a step of a solver, where that is not 1: 2 for Reversible;
        for NewtonKrylov, whose steps differ, their mean.
    Raises:
      ValueError: if ``per_step`` names a solver without a trace.
    """
    per_step = {} if per_step is None else per_step
    if unknown := set(per_step) - set(traces):
        raise ValueError(
            f"jdeq.plots.convergence: per_step must name solvers of traces, {sorted(traces)}; got "
            f"{sorted(unknown)}"
        )
    last = list(traces)[-1:]
    for name, trace in traces.items():
        line = rtol if [name] == last else None  # once, and last in the legend
        residual_trace(trace, ax=ax, label=name, rtol=line, per_step=per_step.get(name, 1))
    return ax


def spectrum(eigenvalues: Complex[np.ndarray, " n"], *, ax: Axes, label: str = "spectrum") -> Axes:
    """Eigenvalues of the Jacobian in the complex plane, and the unit circle: plain iteration
    converges where all lie inside it. Drawn again, into the same axes, to compare.
    """
    eigenvalues = np.ravel(eigenvalues)
    radius = np.abs(eigenvalues).max(initial=0.0)
    ax.scatter(
        np.real(eigenvalues),
        np.imag(eigenvalues),
        s=10,
        alpha=0.7,
        label=f"{label}, radius {radius:.2f}",
    )
    if "unit circle" not in ax.get_legend_handles_labels()[1]:
        angle = np.linspace(0, 2 * np.pi, 200)
        ax.plot(np.cos(angle), np.sin(angle), color="0.4", lw=0.8, ls="--", label="unit circle")
    ax.set_aspect("equal", adjustable="datalim")
    return finish(ax, "imaginary part of the eigenvalue", "real part of the eigenvalue")


def budget_curve(
    rows: Sequence[Record],
    *,
    ax: Axes,
    label: str = "test",
    quality: Literal[
        "accuracy", "mean_iou", "bits_per_byte", "word_perplexity", "rmse"
    ] = "accuracy",
) -> Axes:
    """``quality`` at hard stops, accuracy and mean IoU in percent: rows with "budget" and that
    measure. Drawn again, into the same axes, for each further run.
    """
    budgets = [row["budget"] for row in rows]
    scale, name = QUALITIES[quality]
    ax.plot(budgets, [scale * row[quality] for row in rows], marker="o", ms=4, label=label)
    ax.set_xticks(np.unique(np.concatenate([line.get_xdata() for line in ax.get_lines()])))
    return finish(ax, name, "evaluations of the cell, hard stop")
