"""Pictures of a run: training curves, evaluations and spectral radius over time, residual traces.

Every function draws into the axes it is given and returns them; colours and sizes are matplotlib's.
Records are those of a run's metrics file (`jdeq.training.read_metrics`): dicts with "step", "kind"
("train", "test", "spectrum") and numbers, None where a number was not finite.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

Record = dict[str, Any]
_QUALITIES = {
    "accuracy": (100, "accuracy (%)"),
    "bits_per_byte": (1, "bits per byte"),
    "word_perplexity": (1, "perplexity a word"),
}


def series(
    records: Iterable[Record], kind: str, name: str
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Steps and values of one quantity; NaN where it was not finite."""
    found = [(r["step"], r[name]) for r in records if r["kind"] == kind and name in r]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, float), np.array(values, float)


def loss_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Training and test loss in nats over steps, logarithmic."""
    for kind, style in (("train", {"lw": 1.0}), ("test", {"lw": 1.5, "marker": "o", "ms": 3})):
        steps, values = series(records, kind, "loss_nats")
        ax.semilogy(steps, values, label=kind, **style)
    return _finish(ax, "loss (nats)")


def accuracy_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Error rate in percent over steps, logarithmic: what is left to gain is what shows."""
    for kind, style in (("train", {"lw": 1.0}), ("test", {"lw": 1.5, "marker": "o", "ms": 3})):
        steps, values = series(records, kind, "accuracy")
        error = 100 * (1 - values)
        ax.semilogy(steps, np.where(error > 0, error, np.nan), label=kind, **style)
    return _finish(ax, "error (%)")


def text_curve(
    records: Sequence[Record],
    *,
    ax: Axes,
    quality: Literal["bits_per_byte", "word_perplexity"] = "bits_per_byte",
) -> Axes:
    """Bits per byte, or perplexity a word, of the test text over steps."""
    ax.plot(*series(records, "test", quality), label="test", lw=1.5, marker="o", ms=3)
    return _finish(ax, _QUALITIES[quality][1])


def nfe_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Mean evaluations of the cell forward, and products with its Jacobian backward, over steps."""
    for name, label in (("nfe_forward", "forward"), ("nfe_backward", "backward")):
        steps, values = series(records, "train", name)
        ax.plot(steps, values, label=label, lw=1.0)
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # a budget that is always spent is a line at the top
    return _finish(ax, "evaluations a sample")


def residual_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Largest relative residual in a batch, forward and backward, over steps, logarithmic."""
    for name, label in (("residual_max", "forward"), ("residual_backward", "backward")):
        steps, values = series(records, "train", name)
        ax.semilogy(steps, np.where(values > 0, values, np.nan), label=label, lw=1.0)
    return _finish(ax, "largest relative residual")


def spectral_radius_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Spectral radius of the cell's Jacobian at the fixed point over steps: mean and range."""
    steps, mean = series(records, "spectrum", "spectral_radius_mean")
    low, high = (series(records, "spectrum", f"spectral_radius_{e}")[1] for e in ("min", "max"))
    ax.plot(steps, mean, marker="o", ms=3, label="mean")
    ax.fill_between(steps, low, high, alpha=0.2, lw=0, label="range over samples")
    ax.axhline(1.0, color="0.4", lw=0.8, ls="--", label="1: plain iteration stops converging")
    ax.set_ylim(bottom=0)
    return _finish(ax, "spectral radius")


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
    return _finish(ax, "relative residual", "steps of the solver")


def budget_curve(
    rows: Sequence[Record],
    *,
    ax: Axes,
    label: str = "test",
    quality: Literal["accuracy", "bits_per_byte", "word_perplexity"] = "accuracy",
) -> Axes:
    """``quality`` (accuracy in percent) at hard stops: rows with "budget" and that measure."""
    budgets = [row["budget"] for row in rows]
    scale, name = _QUALITIES[quality]
    ax.plot(budgets, [scale * row[quality] for row in rows], marker="o", ms=4, label=label)
    ax.set_xticks(budgets)
    return _finish(ax, name, "evaluations of the cell, hard stop")


def _finish(ax: Axes, ylabel: str, xlabel: str = "step") -> Axes:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", frameon=False)
    return ax
