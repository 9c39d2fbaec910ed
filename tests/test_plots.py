"""Plots draw into the axes they are given, and return them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from jdeq import plots

RECORDS = [
    {
        "step": step, "kind": "train", "loss_nats": 1 / step, "accuracy": 1 - 1 / (1 + step),
        "nfe_forward": 6.0, "nfe_backward": 7.0, "residual_max": 0.1 / step,
        "residual_backward": None if step == 3 else 0.2,
    }
    for step in range(1, 6)
] + [
    {"step": 5, "kind": "test", "loss_nats": 0.3, "accuracy": 1.0, "bits_per_byte": 0.4},
    {"step": 5, "kind": "spectrum", "spectral_radius_mean": 0.8, "spectral_radius_min": 0.7,
     "spectral_radius_max": 0.9},
]  # fmt: skip


@pytest.mark.parametrize(
    "draw",
    [
        plots.loss_curve,
        plots.accuracy_curve,
        plots.nfe_curve,
        plots.residual_curve,
        plots.spectral_radius_curve,
    ],
)
def test_curves(draw):
    ax = Figure().subplots()
    assert draw(RECORDS, ax=ax) is ax
    assert ax.get_ylabel() and ax.get_xlabel() == "step" and len(ax.get_lines()) >= 2
    ax.figure.canvas.draw()


def test_series_keeps_a_gap_where_a_value_was_not_finite():
    steps, values = plots.series(RECORDS, "train", "residual_backward")
    assert list(steps) == [1, 2, 3, 4, 5] and np.isnan(values[2]) and values[3] == 0.2
    assert plots.series(RECORDS, "train", "nothing")[0].shape == (0,)


def test_residual_trace():
    trace = np.logspace(0, -4, 9)[:, None] * np.ones(5)
    trace[6:, :2] = np.nan  # ended earlier
    trace = np.concatenate([trace, np.full((3, 5), np.nan)])
    ax = Figure().subplots()
    assert plots.residual_trace(trace, ax=ax, rtol=1e-3) is ax
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), np.arange(1, 10))
    ax.figure.canvas.draw()


def test_budget_curve():
    ax = Figure().subplots()
    rows = [{"budget": k, "accuracy": k / 6} for k in range(1, 7)]
    assert plots.budget_curve(rows, ax=ax) is ax
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[-1], 100.0)


def test_text_curve():
    ax = Figure().subplots()
    assert plots.text_curve(RECORDS, ax=ax) is ax
    assert ax.get_ylabel() == "bits per byte" and ax.get_lines()[0].get_ydata()[0] == 0.4


def test_budget_curve_of_text():
    ax = Figure().subplots()
    rows = [{"budget": k, "bits_per_byte": 3 - k / 6} for k in (2, 4)]
    plots.budget_curve(rows, ax=ax, quality="bits_per_byte")
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [3 - 2 / 6, 3 - 4 / 6])
    assert ax.get_ylabel() == "bits per byte"
