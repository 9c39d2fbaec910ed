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
    trace[:, 4] = np.nan  # not finite from the start
    assert plots.residual_trace(trace, ax=ax, rtol=1e-3) is ax
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), np.arange(1, 10))
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata()[:6], np.logspace(0, -4, 9)[:6])
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


def test_rmse_curve():
    ax = Figure().subplots()
    records = [{"step": 5, "kind": "test", "rmse": 0.25}]
    assert plots.rmse_curve(records, ax=ax) is ax
    assert ax.get_lines()[0].get_ydata()[0] == 0.25 and ax.get_ylabel() == "root mean squared error"


def test_budget_curve_of_several_runs():
    """The ticks are the budgets of both."""
    ax = Figure().subplots()
    for label, budgets in (("one", (1, 2)), ("two", (2, 4))):
        rows = [{"budget": k, "rmse": 1 / k} for k in budgets]
        assert plots.budget_curve(rows, ax=ax, label=label, quality="rmse") is ax
    assert list(ax.get_xticks()) == [1, 2, 4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


def test_convergence_of_several_solvers_by_evaluation():
    ax = Figure().subplots()
    trace = np.logspace(0, -3, 4)[:, None] * np.ones(3)
    traces = {"Picard": trace, "Reversible": trace[:3]}
    per_step = {"Reversible": 2}
    assert plots.convergence(traces, ax=ax, rtol=1e-3, per_step=per_step) is ax
    picard, reversible, tolerance = ax.get_lines()
    assert list(picard.get_xdata()) == [1, 2, 3, 4] and list(reversible.get_xdata()) == [2, 4, 6]
    np.testing.assert_allclose(reversible.get_ydata(), trace[:3, 0])
    assert set(tolerance.get_ydata()) == {1e-3}
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["Picard", "Reversible", "rtol 0.001"]
    assert ax.get_xlabel() == "evaluations of the map"
    with pytest.raises(ValueError, match=r"per_step must name solvers .* got \['Broyden'\]"):
        plots.convergence(traces, ax=ax, per_step={"Broyden": 1})


def test_spectra_share_one_unit_circle():
    ax = Figure().subplots()
    turned = 0.5 * np.exp(1j * np.array([1.0, -1.0]))
    assert plots.spectrum(turned, ax=ax, label="trained") is ax
    plots.spectrum(np.array([1.5, 0.0]), ax=ax, label="expansive")
    np.testing.assert_allclose(
        ax.collections[0].get_offsets(), np.stack([turned.real, turned.imag], axis=-1)
    )
    (circle,) = ax.get_lines()
    np.testing.assert_allclose(np.hypot(*circle.get_data()), 1.0)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["trained, radius 0.50", "unit circle", "expansive, radius 1.50"]
    assert "imaginary" in ax.get_ylabel() and "real" in ax.get_xlabel()
    ax.figure.canvas.draw()


def test_cobweb_climbs_to_f_and_crosses_to_the_diagonal():
    z = np.linspace(-2, 2, 9)
    states = [0.0]
    for _ in range(3):
        states.append(1 - 0.5 * states[-1])
    ax = Figure().subplots()
    assert plots.cobweb(z, 1 - 0.5 * z, np.array(states), ax=ax, label="x = 1") is ax
    f, diagonal, stairs = ax.get_lines()
    np.testing.assert_allclose(f.get_ydata(), 1 - 0.5 * z)
    np.testing.assert_allclose(diagonal.get_ydata(), diagonal.get_xdata())
    corners = np.stack(stairs.get_data(), axis=-1)
    np.testing.assert_allclose(corners[0], [0, 0])
    np.testing.assert_allclose(corners[1::2, 1], 1 - 0.5 * corners[1::2, 0])  # on f
    np.testing.assert_allclose(corners[0::2, 0], corners[0::2, 1])  # on the diagonal
    assert len(corners) == 7 and stairs.get_label() == "3 evaluations"
    with pytest.raises(ValueError, match="cobweb: iterates must be two or more states; got 1"):
        plots.cobweb(z, z, np.zeros(1), ax=ax)


def test_surface_carries_its_equilibria():
    z, x = np.linspace(-1, 1, 5), np.linspace(-2, 2, 7)
    fz = 0.5 * z[:, None] + 0.25 * x
    ax = Figure().add_subplot(projection="3d")
    assert plots.surface(z, x, fz, 0.5 * x, ax=ax) is ax
    (line,) = ax.get_lines()
    at, states, heights = line.get_data_3d()
    np.testing.assert_allclose(at, x)
    np.testing.assert_allclose(states, 0.5 * x)
    np.testing.assert_allclose(heights, 0.5 * states + 0.25 * at)  # on the surface
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("input x", "state z", "f(z; x)")
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match=r"surface: fz must have the shape \(5, 7\)"):
        plots.surface(z, x, fz.T, 0.5 * x, ax=ax)
    with pytest.raises(ValueError, match="surface: ax must have projection='3d'"):
        plots.surface(z, x, fz, 0.5 * x, ax=Figure().subplots())


def test_a_trace_that_was_never_finite_leaves_the_axes_empty():
    ax = Figure().add_subplot()
    plots.residual_trace(np.array([[np.inf, np.inf], [np.nan, np.nan]]), ax=ax, rtol=1e-3)
    line, tolerance = ax.lines
    assert not np.isfinite(line.get_ydata()).any() and tolerance.get_ydata()[0] == 1e-3
