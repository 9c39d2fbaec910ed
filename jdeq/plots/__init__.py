"""Pictures of a run: training curves, evaluations and spectral radius over time, residual traces,
what became of the test images.

Every function draws into the axes (or the figure) it is given and returns them; colours and sizes
are matplotlib's.
"""

from jdeq.plots.images import confusion_matrix, hardest_images, nfe_histogram, segmentation
from jdeq.plots.parts import Record, pixels
from jdeq.plots.solves import budget_curve, residual_trace
from jdeq.plots.training import (
    accuracy_curve,
    iou_curve,
    loss_curve,
    nfe_curve,
    residual_curve,
    series,
    spectral_radius_curve,
    text_curve,
)

__all__ = [
    "Record",
    "accuracy_curve",
    "budget_curve",
    "confusion_matrix",
    "hardest_images",
    "iou_curve",
    "loss_curve",
    "nfe_curve",
    "nfe_histogram",
    "pixels",
    "residual_curve",
    "residual_trace",
    "segmentation",
    "series",
    "spectral_radius_curve",
    "text_curve",
]
