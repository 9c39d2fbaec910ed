"""What the pictures share: names of measures, finished axes, a figure as an image."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Record = dict[str, Any]
"""Measures of a moment of training by name, a line of a run's metrics."""
QUALITIES = {
    "accuracy": (100, "accuracy (%)"),
    "mean_iou": (100, "mean IoU (%)"),
    "bits_per_byte": (1, "bits per byte"),
    "word_perplexity": (1, "perplexity a word"),
    "rmse": (1, "root mean squared error"),
}
"""Scale and name of the measures that runs are compared by."""


def pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """The figure as an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def finish(ax: Axes, ylabel: str, xlabel: str = "step") -> Axes:
    """The axes with their names, a grid and a legend."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", frameon=False)
    return ax
