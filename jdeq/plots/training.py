"""Curves over the steps of a training.

Records are those of a run's metrics file (`jdeq.training.read_metrics`): dicts with "step", "kind"
("train", "test", "spectrum") and numbers, None where a number was not finite.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

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
    """Error rate in percent over steps, logarithmic: what is left to gain is what shows; linear
    below the smallest error, so that 0 has a place.
    """
    errors = []
    styles: dict[str, Any] = {"train": {"lw": 1.0}, "test": {"lw": 1.5, "marker": "o", "ms": 3}}
    for kind, style in styles.items():
        steps, values = series(records, kind, "accuracy")
        errors.append(100 * (1 - values))
        ax.plot(steps, errors[-1], label=kind, **style)
    errors = np.concatenate(errors)
    ax.set_yscale("symlog", linthresh=np.min(errors[errors > 0], initial=100.0))
    ax.set_ylim(bottom=0)
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
        ax.plot(steps, np.where(values > 0, values, np.nan), label=label, lw=1.0)
    _mark_unsolved(records, ax)
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # a budget that is always spent is a line at the top
    return finish(ax, "evaluations a sample")


def residual_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Largest relative residual in a batch, forward and backward, over steps, logarithmic."""
    for name, label in (("residual_max", "forward"), ("residual_backward", "backward")):
        steps, values = series(records, "train", name)
        ax.semilogy(steps, np.where(values > 0, values, np.nan), label=label, lw=1.0)
    _mark_unsolved(records, ax)
    return finish(ax, "largest relative residual")


def _mark_unsolved(records: Sequence[Record], ax: Axes) -> None:
    """Shade the steps before the first backward solve, if there is one later: a pre-training."""
    steps, products = series(records, "train", "nfe_backward")
    first = np.argmax(products > 0) if (products > 0).any() else 0
    if first:
        ax.axvspan(0, steps[first - 1], color="0.92", lw=0, label="pre-training, not solved")


def spectral_radius_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Spectral radius of the cell's Jacobian at the fixed point over steps: mean and range."""
    steps, mean = series(records, "spectrum", "spectral_radius_mean")
    low, high = (series(records, "spectrum", f"spectral_radius_{e}")[1] for e in ("min", "max"))
    ax.plot(steps, mean, marker="o", ms=3, label="mean")
    ax.fill_between(steps, low, high, alpha=0.2, lw=0, label="range over samples")
    ax.axhline(1.0, color="0.4", lw=0.8, ls="--", label="1: plain iteration stops converging")
    ax.set_ylim(bottom=0)
    return finish(ax, "spectral radius")
