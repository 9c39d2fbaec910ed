"""Hard stops and tolerances of an evaluation, and the tables that show them."""

import io

import pytest
from rich.console import Console

from experiments import run_report, stopping
from experiments.build import build
from experiments.train import parse

ROW = {
    "accuracy": 0.98, "loss_nats": 3.14e-2, "nfe_forward": 12.0, "residual_mean": 1.2e-3,
    "residual_max": 3e-10, "converged": 0.5,
}  # fmt: skip


@pytest.mark.compiles
def test_a_hard_stop_counts_the_evaluations_of_every_stage(tmp_path):
    options = (
        "--model.channels 4 8 --model.expansions 1 1 --model.group-size 4 --model.pool 2 "
        "--data.test-fraction 0.02"
    ).split()
    _, arguments = parse(["digits_revdeq", "--workdir", str(tmp_path), *options])
    run = build(arguments.config)
    said = []
    rows = stopping.evaluate_at(
        run.model,
        run.initial_state().variables,
        run.task,
        budgets=(1, 2, 4),  # a step takes two
        rtols=(),
        say=said.append,
    )
    assert [(row["budget"], row["nfe_forward"]) for row in rows] == [(2, 4.0), (4, 8.0)]
    assert said == ["test examples, after 2", "test examples, after 4"]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_table_keeps_its_digits_on_any_console(width):
    out = io.StringIO()
    rows = [{"stop": "after 12", "budget": 12} | ROW, {"stop": "rtol 0.001"} | ROW]
    run_report.show_rows(rows, Console(file=out, width=width))
    lines = [line for line in out.getvalue().splitlines() if "│" in line]
    for line, name in zip(lines, ("after 12", "rtol 0.001"), strict=True):
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells == [name, "98.00%", "3.14e-02", "12.00", "1.2e-03", "3.0e-10", "50.0%"]
        assert len(line) <= 80
