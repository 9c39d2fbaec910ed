"""The findings as pictures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.inspection.findings import Findings, residual_histogram
from jdeq import plots
from jdeq.plots.parts import QUALITIES, finish

_WORST = 1e2  # relative errors beyond it are not drawn to scale


def draw(found: Findings) -> dict[str, Figure]:
    """All of them, by section."""
    return {
        "samples": _samples(found),
        "solvers": _solvers(found),
        "spectrum": _spectrum(found),
        "rules": _rules(found),
        "settings": _settings(found),
    }


def _figure(panels: int, height: float = 3.6) -> tuple[Figure, list]:
    figure = Figure(figsize=(9.6, height), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _samples(found: Findings) -> Figure:
    figure, (left, right) = _figure(2)
    most = max(int(one.nfe.max()) for one in found.samples.values())
    for rtol, one in found.samples.items():
        values, counts = np.unique(one.nfe, return_counts=True)
        heights = np.zeros(most)
        heights[values - 1] = 100 * counts / one.nfe.size
        edges = np.arange(most + 1) + 0.5
        label = f"rtol {rtol:g}, mean {one.nfe.mean():.1f}"
        drawn = left.stairs(heights, edges, fill=True, alpha=0.45, label=label)
        left.stairs(heights, edges, color=drawn.get_facecolor(), lw=1.2)
        edges, counts = residual_histogram(one.residual)
        drawn = right.stairs(
            100 * counts / one.residual.size, edges, fill=True, alpha=0.45, label=f"rtol {rtol:g}"
        )
        right.axvline(rtol, color=drawn.get_facecolor(), lw=1.2, ls="--")
    right.set_xscale("log")
    finish(left, f"share of the {found.noun}s (%)", "evaluations of the cell")
    finish(right, f"share of the {found.noun}s (%)", "relative residual (dashed: the tolerance)")
    return figure


def _solvers(found: Findings) -> Figure:
    figure, (ax,) = _figure(1, height=4.4)
    traces = {name: curve.trace for name, curve in found.curves.items()}
    # A residual of 0 has no place on a logarithmic axis: it ends at the rounding of float32.
    floor = np.finfo(np.float32).eps / 2
    plots.convergence({n: np.maximum(t, floor) for n, t in traces.items()}, ax=ax, rtol=found.rtol)
    ax.set_xlabel("evaluations of the cell (products with its Jacobian included)")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, floor / 3), min(high, 1e2))
    return figure


def _spectrum(found: Findings) -> Figure:
    figure, (left, right) = _figure(2, height=4.4)
    radius = found.spectrum.radius[np.isfinite(found.spectrum.radius)]
    if radius.size:
        edges = np.linspace(0, 1.05 * max(1.0, radius.max()), 31)
        left.hist(radius, bins=edges, alpha=0.7, label=f"mean {radius.mean():.2f}")
    left.axvline(1.0, color="0.4", lw=0.8, ls="--", label="1: plain iteration stops converging")
    left.yaxis.get_major_locator().set_params(integer=True)
    left.set_ylim(top=1.25 * left.get_ylim()[1])  # room for the legend
    finish(left, "samples", "spectral radius")
    for index, values in enumerate(found.spectrum.eigenvalues.values):
        there = values[np.isfinite(values)]
        if there.size:
            plots.spectrum(there, ax=right, label=f"sample {index}")
    _legend_beside(right)
    return figure


def _rules(found: Findings) -> Figure:
    figure, (ax,) = _figure(1, height=4.4)
    for name, (gradient, quality) in found.rules.items():
        cost = gradient.evaluations + gradient.products
        if np.isfinite(quality.relative_error) and quality.relative_error > 0:
            size = 90 if "this run" in name else 45
            label = f"{name}: cosine {quality.cosine:.3f}"
            # What is off the scale stands at its end, as an arrow.
            error, marker = min(quality.relative_error, _WORST), "o"
            if error == _WORST:
                label, marker = f"{label}, error {quality.relative_error:.0e}", "^"
            ax.scatter(cost, error, s=size, label=label, marker=marker, zorder=3)
    ax.set_yscale("log")
    ax.axhline(1.0, color="0.4", lw=0.8, ls="--", label="1: as wrong as no gradient")
    finish(ax, "relative error of the gradient", "evaluations and products of a batch")
    ax.set_xlim(left=0)
    _legend_beside(ax)
    return figure


def _legend_beside(ax: Axes) -> None:
    """Where it hides nothing; there is none where nothing was drawn."""
    legend = ax.get_legend()
    if legend is not None:
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((1.0, 1.0))


def _settings(found: Findings) -> Figure:
    figure, (left, right) = _figure(2, height=0.9 + 0.45 * len(found.settings))
    names = list(found.settings)
    rows = list(found.settings.values())
    evaluations = np.array([row.gradient.evaluations for row in rows])
    products = np.array([row.gradient.products for row in rows])
    at = np.arange(len(rows))
    left.barh(at, evaluations, alpha=0.8, label="evaluations")
    left.barh(at, products, left=evaluations, alpha=0.8, label="products")
    left.set_yticks(at, names)
    left.invert_yaxis()
    finish(left, "", "solves of a training step")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    scale, name = QUALITIES[found.quality]
    own = rows[0].quality
    right.barh(at, [scale * (row.quality - own) for row in rows], alpha=0.8, color="C2")
    right.axvline(0, color="0.4", lw=0.8)
    right.set_yticks(at, [""] * len(rows))
    right.invert_yaxis()
    right.grid(alpha=0.3)
    right.locator_params(axis="x", nbins=5)
    better = "right" if found.quality in ("accuracy", "mean_iou") else "left"
    right.set_xlabel(f"change of {name}; better: {better}")
    return figure
