"""Curves over the steps of a training.

Records are those of a run's metrics file (`jdeq.training.read_metrics`): dicts with "step", "kind"
("train", "test", "spectrum") and numbers, None where a number was not finite.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from jdeq.plots.parts import QUALITIES, Record, finish


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
    return finish(ax, "loss (nats)")


def accuracy_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Error rate in percent over steps, logarithmic: what is left to gain is what shows."""
    for kind, style in (("train", {"lw": 1.0}), ("test", {"lw": 1.5, "marker": "o", "ms": 3})):
        steps, values = series(records, kind, "accuracy")
        error = 100 * (1 - values)
        ax.semilogy(steps, np.where(error > 0, error, np.nan), label=kind, **style)
    return finish(ax, "error (%)")


def iou_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Mean intersection over union of the test images in percent over steps."""
    steps, values = series(records, "test", "mean_iou")
    ax.plot(steps, 100 * values, label="test", lw=1.5, marker="o", ms=3)
    return finish(ax, QUALITIES["mean_iou"][1])


def rmse_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Root mean squared error of the test examples over steps, logarithmic."""
    ax.semilogy(*series(records, "test", "rmse"), label="test", lw=1.5, marker="o", ms=3)
    return finish(ax, QUALITIES["rmse"][1])


def text_curve(
    records: Sequence[Record],
    *,
    ax: Axes,
    quality: Literal["bits_per_byte", "word_perplexity"] = "bits_per_byte",
) -> Axes:
    """Bits per byte, or perplexity a word, of the test text over steps."""
    ax.plot(*series(records, "test", quality), label="test", lw=1.5, marker="o", ms=3)
    return finish(ax, QUALITIES[quality][1])


def nfe_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Mean evaluations of the cell forward, and products with its Jacobian backward, over steps."""
    for name, label in (("nfe_forward", "forward"), ("nfe_backward", "backward")):
        steps, values = series(records, "train", name)
        ax.plot(steps, values, label=label, lw=1.0)
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # a budget that is always spent is a line at the top
    return finish(ax, "evaluations a sample")


def residual_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Largest relative residual in a batch, forward and backward, over steps, logarithmic."""
    for name, label in (("residual_max", "forward"), ("residual_backward", "backward")):
        steps, values = series(records, "train", name)
        ax.semilogy(steps, np.where(values > 0, values, np.nan), label=label, lw=1.0)
    return finish(ax, "largest relative residual")


def spectral_radius_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Spectral radius of the cell's Jacobian at the fixed point over steps: mean and range."""
    steps, mean = series(records, "spectrum", "spectral_radius_mean")
    low, high = (series(records, "spectrum", f"spectral_radius_{e}")[1] for e in ("min", "max"))
    ax.plot(steps, mean, marker="o", ms=3, label="mean")
    ax.fill_between(steps, low, high, alpha=0.2, lw=0, label="range over samples")
    ax.axhline(1.0, color="0.4", lw=0.8, ls="--", label="1: plain iteration stops converging")
    ax.set_ylim(bottom=0)
    return finish(ax, "spectral radius")
