"""The end of a run: its numbers as a table, JSON and Markdown, and its pictures."""

import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import jdeq
from experiments import workdir
from experiments.build import Run, eval_step
from experiments.data import Task
from jdeq import plots
from jdeq.training import (
    Evaluation,
    TensorBoard,
    TrainState,
    confusion_matrix,
    equilibrium_of,
    evaluate_samples,
    read_metrics,
)

TOLERANCE_STEPS = 50  # the budget of an evaluation to a tolerance
_NEVER = 1e-7  # a tolerance that float32 does not reach within a few evaluations
_COLUMNS = {  # of a measure: its heading and its format
    "bits_per_byte": ("bits per byte", ".3f"),
    "word_perplexity": ("perplexity a word", ".2f"),
    "subword_perplexity": ("perplexity a subword", ".2f"),
    "mean_iou": ("mean IoU", ".2%"),
    "accuracy": ("accuracy", ".2%"),
    "rmse": ("RMSE", ".4f"),
    "loss_nats": ("loss (nats)", ".2e"),
    "nfe_forward": ("mean nfe", ".2f"),
    "residual_mean": ("mean residual", ".1e"),
    "residual_max": ("max residual", ".1e"),
    "converged": ("converged", ".1%"),
}


def evaluate_at(
    model: Any,
    variables: dict[str, Any],
    task: Task,
    *,
    budgets: Iterable[int],
    rtols: Iterable[float],
) -> list[dict[str, Any]]:
    """Quality on the test examples and solver statistics, at hard stops and at tolerances.

    A hard stop takes the state after exactly ``budget`` evaluations of the cell, as a network of
    that depth would; a tolerance solves each sample until it holds. A step of Reversible takes two
    evaluations, so that only even budgets have a row; one of NewtonKrylov takes as many as it
    needs, so that there are no hard stops. An explicit model has one row.
    """

    def measure(**options):
        return task.evaluate(eval_step(model.clone(**options), task), variables)

    if not hasattr(model, "solver"):
        return [{"stop": "explicit", **measure()}]
    per_step = evaluations_per_step(model.solver)
    rows = []
    for budget in budgets:
        if per_step is None or budget % per_step:
            continue
        stop = {"stop": f"after {budget}", "budget": budget}
        row = measure(**stop_options(model, stop))
        # The solve counts one more, which measures the residual of the state it returns.
        row["nfe_forward"] -= 1
        rows.append(stop | row)
    for rtol in rtols:
        stop = {"stop": f"rtol {rtol:g}", "rtol": rtol}
        rows.append(stop | measure(**stop_options(model, stop)))
    return rows


def stop_options(model: Any, stop: dict[str, Any]) -> dict[str, Any]:
    """What a model solves with in a row of `evaluate_at`: at its "budget" or its "rtol"."""
    per_step = evaluations_per_step(model.solver) or 1
    if "budget" in stop:
        steps = stop["budget"] // per_step
        return {"gradient": jdeq.Unrolled(), "max_steps": steps, "rtol": _NEVER}
    return {"rtol": stop["rtol"], "max_steps": TOLERANCE_STEPS // per_step}


def evaluations_per_step(solver: Any) -> int | None:
    """Evaluations of the cell in a step of a solver; None where that varies."""
    if isinstance(solver, jdeq.NewtonKrylov):
        return None
    return 2 if isinstance(solver, jdeq.Reversible) else 1


def write(
    run: Run, state: TrainState, directory: pathlib.Path, *, train_seconds: float
) -> dict[str, Any]:
    """Evaluate, draw, write report.json and report.md into ``directory``; returns the report.

    All with the averaged parameters, where the run has them.
    """
    records = read_metrics(directory / workdir.METRICS_FILE)
    loop = run.config.loop
    rows = evaluate_at(
        run.model, state.averaged_variables, run.task, budgets=loop.budgets, rtols=loop.rtols
    )
    by_kind = {k: [r for r in records if r["kind"] == k] for k in ("train", "spectrum")}
    report = {
        "steps": int(state.step),
        "train_seconds": round(train_seconds, 1),
        "seed": run.config.seed,
        "ema": run.config.optimizer.ema,
        "data": run.task.data,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "steps_skipped": int(state.skipped),
        "step_temporary_mib": _temporary_mib(run),
        "step_seconds": statistics.median(
            r["step_seconds"] for r in records if r["kind"] == "train"
        ),
        "nfe_backward": by_kind["train"][-1]["nfe_backward"],
        "spectral_radius_mean": None,
        "test": rows,
    }
    if run.implicit:
        radius = by_kind["spectrum"][-1]["spectral_radius_mean"]  # None where it was not finite
        report["spectral_radius_mean"] = math.nan if radius is None else radius
    figures = draw(run, state, records, rows)
    board = TensorBoard(directory / workdir.TENSORBOARD, start_step=report["steps"])
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png")
        board.image(report["steps"], f"report/{name}", plots.pixels(figure))
    board.close()
    workdir.write_text(directory / "report.md", _markdown(report, figures))
    # Last, since a run counts as finished when this file is there.
    workdir.write_text(directory / workdir.REPORT_FILE, json.dumps(report, indent=2) + "\n")
    return report


def _temporary_mib(run: Run) -> float:
    """What the compiler sets aside for a training step without the penalty."""
    step: Any = run.train_step(run.model)
    lowered = step.lower(run.abstract_state(), run.task.batches(0), 0.0, penalize=False)
    return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    console.print(_summary(report))
    console.print(table(report["test"]))


def table(rows: Sequence[dict[str, Any]], *, key: str = "stop") -> Table:
    """The rows of `evaluate_at` for the terminal; ``key`` is what tells them apart."""
    out = Table(*_heads(rows, key))
    for row in rows:
        out.add_row(*_cells(row, key))
    return out


def _summary(report: dict[str, Any]) -> str:
    radius, ema = report["spectral_radius_mean"], report.get("ema")  # not in older reports
    average = "" if ema is None else f"; measured with averaged parameters (ema {ema:g})"
    solve = ""
    if radius is not None:
        solve = f", backward nfe {report['nfe_backward']:.1f}; spectral radius {radius:.2f}"
    return (
        f"{report['steps']} steps in {report['train_seconds']:.0f} s, {report['parameters']:,} "
        f"parameters, {report['steps_skipped']} steps skipped; a step: "
        f"{report['step_seconds']:.3f} s, {report['step_temporary_mib']:.0f} MiB of temporary "
        f"memory{solve}{average}"
    )


def _heads(rows: Sequence[dict[str, Any]], key: str = "stop") -> list[str]:
    return [key, *(head for name, (head, _) in _COLUMNS.items() if name in rows[0])]


def _cells(row: dict[str, Any], key: str = "stop") -> list[str]:
    values = [format(row[name], spec) for name, (_, spec) in _COLUMNS.items() if name in row]
    return [row[key], *values]


def _markdown(report: dict[str, Any], figures: Iterable[str]) -> str:
    heads = _heads(report["test"])
    lines = ["# Report", "", _summary(report) + ".", "", "Test examples:", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in report["test"]]
    lines += ["", *(f"![{name}]({name}.png)\n" for name in figures)]
    return "\n".join(lines)


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
