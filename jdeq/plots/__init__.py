"""Pictures of a run: training curves, evaluations and spectral radius over time, convergence and
spectrum of a solve, scalar maps, what became of the test images.

Every function draws into the axes (or the figure) it is given and returns them; colours and sizes
are matplotlib's.
"""

from jdeq.plots.images import confusion_matrix, hardest_images, nfe_histogram, segmentation
from jdeq.plots.maps import cobweb, surface
from jdeq.plots.parts import Record, pixels
from jdeq.plots.solves import budget_curve, convergence, residual_trace, spectrum
from jdeq.plots.training import (
    accuracy_curve,
    iou_curve,
    loss_curve,
    nfe_curve,
    residual_curve,
    rmse_curve,
    series,
    spectral_radius_curve,
    text_curve,
)

__all__ = [
    "Record",
    "accuracy_curve",
    "budget_curve",
    "cobweb",
    "confusion_matrix",
    "convergence",
    "hardest_images",
    "iou_curve",
    "loss_curve",
    "nfe_curve",
    "nfe_histogram",
    "pixels",
    "residual_curve",
    "residual_trace",
    "rmse_curve",
    "segmentation",
    "series",
    "spectral_radius_curve",
    "spectrum",
    "surface",
    "text_curve",
]
