"""The end of a run: its numbers as a table, JSON and Markdown, beside its pictures."""

import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from rich.console import Console

from experiments import tables, workdir
from experiments.build import Run
from experiments.provenance import provenance
from experiments.run_pictures import draw
from experiments.stopping import evaluate_at
from jdeq import plots
from jdeq.training import TensorBoard, TrainState, read_metrics

COLUMNS = {  # of a measure: its heading and its format, in every table of runs
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


_HARD_STOPS = (
    "After k: the state after k evaluations of the cell; one more, not counted, measures its "
    "residual."
)


def write(
    run: Run,
    state: TrainState,
    directory: pathlib.Path,
    *,
    train_seconds: float,
    begin: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Evaluate, draw, write report.json and report.md into ``directory``; returns the report.

    All with the averaged parameters, where the run has them.

    Args:
      train_seconds: what training took.
      begin: ``time.perf_counter()`` when all of the run began, for its wall time.
      say: told what is done next.
    """
    records = read_metrics(directory / workdir.METRICS_FILE)
    loop = run.config.loop
    rows = evaluate_at(
        run.model,
        state.averaged_variables,
        run.task,
        budgets=loop.budgets,
        rtols=loop.rtols,
        say=say,
    )
    say("memory of a step")
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
        "provenance": provenance(),
    }
    if run.implicit:
        radius = by_kind["spectrum"][-1]["spectral_radius_mean"]  # None where it was not finite
        report["spectral_radius_mean"] = math.nan if radius is None else radius
    say("pictures")
    figures = draw(run, state, records, rows)
    board = TensorBoard(directory / workdir.TENSORBOARD, start_step=report["steps"])
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png")
        board.image(report["steps"], f"report/{name}", plots.pixels(figure))
    board.close()
    workdir.write_text(directory / "report.md", _markdown(report, figures))
    report["wall_seconds"] = round(time.perf_counter() - begin, 1)
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
    show_rows(report["test"], console)


def show_rows(rows: Sequence[dict[str, Any]], console: Console, *, key: str = "stop") -> None:
    """The rows of `evaluate_at` for the terminal; ``key`` is what tells them apart."""
    tables.show(console, _heads(rows, key), [_cells(row, key) for row in rows])
    if any("budget" in row for row in rows):
        console.print(_HARD_STOPS)


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
    return [key, *(head for name, (head, _) in COLUMNS.items() if name in rows[0])]


def _cells(row: dict[str, Any], key: str = "stop") -> list[str]:
    values = [format(row[name], spec) for name, (_, spec) in COLUMNS.items() if name in row]
    return [row[key], *values]


def _markdown(report: dict[str, Any], figures: Iterable[str]) -> str:
    lines = ["# Report", "", _summary(report) + ".", "", "Test examples:", ""]
    lines.append(tables.markdown(_heads(report["test"]), map(_cells, report["test"])))
    if any("budget" in row for row in report["test"]):
        lines += ["", _HARD_STOPS]
    lines += ["", *(f"![{name}]({name}.png)\n" for name in figures)]
    return "\n".join(lines)
