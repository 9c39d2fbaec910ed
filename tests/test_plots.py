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


def test_iou_curve():
    ax = Figure().subplots()
    records = [{"step": 5, "kind": "test", "mean_iou": 0.25}]
    assert plots.iou_curve(records, ax=ax) is ax
    assert ax.get_lines()[0].get_ydata()[0] == 25 and ax.get_ylabel() == "mean IoU (%)"


def test_confusion_matrix_in_shares_of_the_rows():
    ax = Figure().subplots()
    counts = np.array([[3, 1, 0], [0, 5, 0], [0, 0, 0]])  # no example of the last class
    assert plots.confusion_matrix(counts, ax=ax) is ax
    np.testing.assert_allclose(ax.get_images()[0].get_array()[0], [75, 25, 0])
    assert [text.get_text() for text in ax.texts] == ["75", "25", "100"]
    many = plots.confusion_matrix(np.eye(30, dtype=int), ax=Figure().subplots())
    assert not many.texts  # nobody could read them
    ax.figure.canvas.draw()


def test_which_images_are_hard():
    images = np.random.default_rng(0).normal(size=(4, 3, 3, 1))
    nfe = np.array([5, 9, 2, 5])
    ax = plots.nfe_histogram(nfe, ax=Figure().subplots())
    assert {bar.get_height() for bar in ax.patches} == {1, 2}
    figure = plots.hardest_images(images, nfe, figure=Figure(), count=3)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["9", "5", "5", "2", "5", "5"]
    with pytest.raises(ValueError, match="hardest_images: count must be >= 1; got 0"):
        plots.hardest_images(images, nfe, figure=Figure(), count=0)
    hardest = np.asarray(figure.axes[0].get_images()[0].get_array())
    want = images[1, ..., 0]
    np.testing.assert_allclose(hardest, (want - want.min()) / np.ptp(want))


def test_segmentation_beside_its_truth():
    rng = np.random.default_rng(0)
    images, truth = rng.normal(size=(2, 4, 6, 3)), rng.integers(-1, 3, size=(2, 4, 6))
    guess = rng.integers(0, 3, size=(2, 4, 6))
    one = plots.segmentation(images, truth, guess, classes=3, figure=Figure(), count=1)
    assert len(one.axes) == 3
    with pytest.raises(ValueError, match="segmentation: count must be >= 1; got 0"):
        plots.segmentation(images, truth, guess, classes=3, figure=Figure(), count=0)
    with pytest.raises(ValueError, match="zip"):
        plots.segmentation(images, truth, guess[:1], classes=3, figure=Figure())
    figure = plots.segmentation(images, truth, guess, classes=3, figure=Figure())
    assert len(figure.axes) == 6 and figure.axes[1].get_title() == "truth"
    for ax, picture in zip(figure.axes[1:3], (truth, guess), strict=True):
        drawn = ax.get_images()[0].get_array()
        np.testing.assert_array_equal(drawn.mask, truth[0] < 0)
        np.testing.assert_array_equal(drawn.compressed(), picture[0][truth[0] >= 0])
    pixels = plots.pixels(figure)
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.std() > 10
