"""What became of the test images."""

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator

from jdeq.plots.parts import finish
from jdeq.types import require_integer


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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(ax, "images", "evaluations of the cell")


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


def _image(image: Float[np.ndarray, "height width channels"], ax: Axes) -> None:
    """An image of any normalisation: its smallest value is black, its largest is white."""
    low, high = image.min(), image.max()
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    grey = image.shape[-1] == 1
    ax.imshow(scaled[..., 0] if grey else scaled, cmap="gray" if grey else None, vmin=0, vmax=1)
    ax.set_axis_off()
