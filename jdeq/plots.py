"""Pictures of a run: training curves, evaluations and spectral radius over time, residual traces,
what became of the test images.

Every function draws into the axes (or the figure) it is given and returns them; colours and sizes
are matplotlib's.
Records are those of a run's metrics file (`jdeq.training.read_metrics`): dicts with "step", "kind"
("train", "test", "spectrum") and numbers, None where a number was not finite.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

from jdeq.types import require_integer

Record = dict[str, Any]
_QUALITIES = {
    "accuracy": (100, "accuracy (%)"),
    "mean_iou": (100, "mean IoU (%)"),
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


def iou_curve(records: Sequence[Record], *, ax: Axes) -> Axes:
    """Mean intersection over union of the test images in percent over steps."""
    steps, values = series(records, "test", "mean_iou")
    ax.plot(steps, 100 * values, label="test", lw=1.5, marker="o", ms=3)
    return _finish(ax, _QUALITIES["mean_iou"][1])


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
    quality: Literal["accuracy", "mean_iou", "bits_per_byte", "word_perplexity"] = "accuracy",
) -> Axes:
    """``quality`` at hard stops, accuracy and mean IoU in percent: rows with "budget" and that
    measure.
    """
    budgets = [row["budget"] for row in rows]
    scale, name = _QUALITIES[quality]
    ax.plot(budgets, [scale * row[quality] for row in rows], marker="o", ms=4, label=label)
    ax.set_xticks(budgets)
    return _finish(ax, name, "evaluations of the cell, hard stop")


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], *, ax: Axes) -> Axes:
    """Share of each true class (row) that was predicted as each class (column).

    Up to 20 classes the shares are written into the cells, in percent where they are not 0.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if len(counts) <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            text, colour = f"{share:.0f}", "white" if share > 50 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        ax.set_xticks(range(len(counts)))
        ax.set_yticks(range(len(counts)))
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class (shares in %)")
    return ax


def nfe_histogram(nfe: Int[np.ndarray, " images"], *, ax: Axes) -> Axes:
    """How many images took how many evaluations of the cell."""
    values, counts = np.unique(nfe, return_counts=True)
    ax.bar(values, counts, width=0.8, label=f"mean {nfe.mean():.1f}")
    return _finish(ax, "images", "evaluations of the cell")


def hardest_images(
    images: Float[np.ndarray, "images height width channels"],
    nfe: Int[np.ndarray, " images"],
    *,
    figure: FigureBase,
    count: int = 5,
) -> FigureBase:
    """The images that took the most evaluations (upper row) and the fewest, with their numbers.

    Raises:
      ValueError: if ``count`` is below 1.
    """
    require_integer("jdeq.plots.hardest_images", "count", count, 1)
    order = np.argsort(nfe, kind="stable")
    count = min(count, len(order))
    axes = figure.subplots(2, count, squeeze=False)
    for row, chosen in zip(axes, (order[::-1][:count], order[:count]), strict=True):
        for ax, index in zip(row, chosen, strict=True):
            _image(images[index], ax)
            ax.set_title(f"{nfe[index]}", fontsize="small")
    figure.suptitle("evaluations: most, fewest", fontsize="medium")
    return figure


def segmentation(
    images: Float[np.ndarray, "images height width channels"],
    labels: Int[np.ndarray, "images height width"],
    predicted: Int[np.ndarray, "images height width"],
    *,
    classes: int,
    figure: FigureBase,
    count: int = 4,
) -> FigureBase:
    """Image, true classes and predicted classes in a row, for the first ``count`` images.

    Pixels without a class (labels below 0) are white in both.

    Raises:
      ValueError: if ``count`` is below 1, or there are not as many labels or predictions as images.
    """
    require_integer("jdeq.plots.segmentation", "count", count, 1)
    images, labels, predicted = images[:count], labels[:count], predicted[:count]
    count = len(images)
    axes = figure.subplots(count, 3, squeeze=False)
    colours = {"vmin": 0, "vmax": classes - 1, "cmap": "nipy_spectral", "interpolation": "nearest"}
    for row, image, truth, guess in zip(axes, images, labels, predicted, strict=True):
        _image(image, row[0])
        for ax, picture in zip(row[1:], (truth, guess), strict=True):
            ax.imshow(np.ma.masked_where(truth < 0, picture), **colours)
            ax.set_axis_off()
    for ax, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        ax.set_title(title, fontsize="medium")
    return figure


def pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """The figure as an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _image(image: Float[np.ndarray, "height width channels"], ax: Axes) -> None:
    """An image of any normalisation: its smallest value is black, its largest is white."""
    low, high = image.min(), image.max()
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    grey = image.shape[-1] == 1
    ax.imshow(scaled[..., 0] if grey else scaled, cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_axis_off()


def _finish(ax: Axes, ylabel: str, xlabel: str = "step") -> Axes:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", frameon=False)
    return ax
