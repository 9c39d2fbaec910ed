"""The pictures of a run's report: training, solves, and what it makes of test images."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import jdeq
from experiments.build import Run, eval_step
from experiments.stopping import TOLERANCE_STEPS, evaluations_per_step
from jdeq import plots
from jdeq.training import (
    Evaluation,
    TrainState,
    confusion_matrix,
    equilibrium_of,
    evaluate_samples,
)


def draw(
    run: Run, state: TrainState, records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    """The pictures by name: of the training, of the solver unless the model is explicit, and of the
    test examples where they are images.
    """
    quality = run.task.quality
    figure, axes = _figure(2)
    figures = {"training": figure}
    plots.loss_curve(records, ax=axes[0])
    if quality == "accuracy":
        plots.accuracy_curve(records, ax=axes[1])
    elif quality == "mean_iou":
        plots.iou_curve(records, ax=axes[1])
    elif quality == "rmse":
        plots.rmse_curve(records, ax=axes[1])
    else:
        plots.text_curve(records, ax=axes[1], quality=quality)
    if run.implicit:
        figures["solver"], axes = _figure(3)
        plots.nfe_curve(records, ax=axes[0])
        plots.residual_curve(records, ax=axes[1])
        plots.spectral_radius_curve(records, ax=axes[2])

        figures["equilibrium"], axes = _figure(2)
        rtol = min(run.config.loop.rtols)
        plots.residual_trace(_trace(run, state, rtol), ax=axes[0], rtol=rtol)
        if budgets := [row for row in rows if "budget" in row]:
            plots.budget_curve(budgets, ax=axes[1], quality=quality)
    if run.task.has_images:
        figures |= _images(run, state)
    return figures


def _images(run: Run, state: TrainState) -> dict[str, Figure]:
    """What the model makes of the test images as it was trained to solve them: who is taken for
    whom, a segmentation beside its truth; and which images take long to the smallest tolerance.

    Where the test images held in memory are only some of them, nobody is counted.
    """
    task = run.task
    images, labels = task.test
    figures = {}

    def judged(model: Any) -> Evaluation:
        step = eval_step(model, task)
        return evaluate_samples(
            step, state.averaged_variables, task.test, batch_size=task.test_batch_size
        )

    if task.scored is None or task.labels_pixels:
        predicted = np.asarray(judged(run.model).predicted)
        if task.scored is None:
            figures["confusion"] = figure = Figure((4.8, 4.2), dpi=120, layout="constrained")
            confusion = confusion_matrix(labels, predicted, task.classes)
            plots.confusion_matrix(confusion, ax=figure.subplots())
        if task.labels_pixels:
            figures["segmentation"] = figure = Figure((6, 8), dpi=120, layout="constrained")
            plots.segmentation(images, labels, predicted, classes=task.classes, figure=figure)
    if run.implicit:
        steps = TOLERANCE_STEPS // (evaluations_per_step(run.model.solver) or 1)
        solved = run.model.clone(rtol=min(run.config.loop.rtols), max_steps=steps)
        nfe = np.asarray(judged(solved).nfe)
        figures["difficulty"] = figure = Figure(figsize=(9.6, 3.6), dpi=120, layout="constrained")
        halves: Any = figure.subfigures(1, 2)
        left, right = halves
        plots.nfe_histogram(nfe, ax=left.subplots())
        plots.hardest_images(images, nfe, figure=right)
        if task.scored is not None:
            figure.suptitle(f"first {len(images)} test images", fontsize="medium")
    return figures


def _figure(panels: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.8 * panels, 3.6), dpi=120, layout="constrained")
    return figure, figure.subplots(1, panels)


def _trace(run: Run, state: TrainState, rtol: float) -> np.ndarray:
    """Residual by step on some of the test examples (and positions), with the run's solver."""

    @jax.jit
    def solve(variables, inputs):
        f, params, z0, x, _ = equilibrium_of(run.model, variables, inputs)
        return jdeq.fixed_point(
            f,
            params,
            z0,
            x,
            solver=run.model.solver,
            rtol=rtol,
            max_steps=30,
            trace=True,
            causal=getattr(run.model, "causal", False),
        ).trace

    inputs = run.task.test_inputs(run.task.test_batch_size)
    trace = np.asarray(solve(state.averaged_variables, inputs))
    return trace.reshape(len(trace), -1)
