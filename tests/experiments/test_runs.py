"""The commands, end to end, on a model of one scale and a run of a few dozen steps."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments import evaluate, train
from experiments.build import build
from experiments.config_files import read_config
from jdeq.training import Checkpoints, read_metrics

# The run that these tests look at is made once; under xdist with --dist loadgroup, too.
pytestmark = pytest.mark.xdist_group("runs")

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--model.channels 4 --model.head-channels 2 --model.head-features 8 --model.expansion 1 "
    "--model.groups 2 --data.batch-size 128 --data.max-shift 1 --loop.steps 33 "
    "--loop.save-every 11 --loop.test-every 22 --loop.spectrum-every 22 --loop.log-every 1 "
    "--loop.spectrum-examples 4 --loop.profile-from 8 --loop.profile-steps 1 "
    "--loop.budgets 1 2 --loop.rtols 0.1 "
    "--optimizer.warmup-steps 5 --optimizer.ema 0.9 --pretrain.steps 6 --pretrain.evaluations 2 "
    "--solver.depth 2 --solver.max-steps 4 --gradient.max-steps 4 --regularizer.probability 1.0"
).split()
STEPS = 33


def command(workdir):
    return ["digits_mdeq", "--workdir", str(workdir), *SMALL]


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """The workdir of a whole run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(command(workdir)) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it that a test may break."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))


def parameters(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    restored = checkpoints.restore(build(read_config(workdir / "config.json")).abstract_state())
    return jax.device_get((restored.state.variables, restored.state.opt_state))


def snapshot(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def test_a_finished_run_left_everything(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "report.json", "report.md",
        "training.png", "solver.png", "equilibrium.png", "confusion.png", "difficulty.png",
        "profile", "checkpoints.begun",
    }  # fmt: skip
    records = read_metrics(finished / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, STEPS + 1))
    assert {r["kind"] for r in records} == {"train", "test", "spectrum"}
    taken = [r for r in records if r["kind"] == "train"]
    assert all(r["nfe_forward"] == 3 for r in taken[:6])  # 2, and 1 for the residual
    assert all(r["nfe_backward"] > 0 for r in taken[6:])
    assert ["penalty" in r for r in taken] == [False] * 6 + [True] * (STEPS - 6)
    written = json.loads((finished / "report.json").read_text())
    assert written["steps"] == STEPS
    one, two, tolerance = written["test"]
    assert (one["nfe_forward"], two["nfe_forward"]) == (1, 2)
    assert two["residual_mean"] < one["residual_mean"]
    assert tolerance["converged"] == 1 and tolerance["residual_max"] <= tolerance["rtol"]
    text = (finished / "report.md").read_text()
    assert "| after 2 |" in text and "averaged parameters (ema 0.9)" in text


def test_a_finished_run_again_only_reports(finished, capsys):
    before = snapshot(finished)
    assert train.main(command(finished)) == 0
    out = " ".join(capsys.readouterr().out.split())  # long paths wrap the line
    assert "finished already" in out and "after 2" in out
    assert snapshot(finished) == before


def test_another_config_is_refused(finished, capsys):
    before = snapshot(finished)
    assert train.main([*command(finished), "--seed", "5", "--solver.depth", "4"]) == 2
    error = capsys.readouterr().err
    assert "another configuration" in error and "seed: 5 here, 0 in the workdir" in error
    assert "solver.depth: 4 here" in error and "model" not in error
    assert snapshot(finished) == before


def test_sigterm_saves_and_the_same_command_goes_on(cache, tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *command(workdir)],
        cwd=ROOT,
        env={**os.environ, **cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count('"train"') >= 8):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    (step,) = Checkpoints(workdir / "checkpoints", read_only=True).steps()[-1:]
    assert f"SIGTERM: stopped after step {step} of {STEPS}" in out
    assert 8 <= step < STEPS
    assert f"Resume with: python -m experiments.train digits_mdeq --workdir {workdir}" in out

    assert train.main(command(workdir)) == 0
    # To the bit: test_launch.py, where every part of a run has a process with as many devices.
    assert parameters(workdir)
    steps = [r["step"] for r in read_metrics(metrics) if r["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_evaluate_prints_the_chosen_stops(finished, capsys):
    before = snapshot(finished)
    argv = ["--workdir", str(finished), "--budgets", "2", "--rtols", "0.1"]
    assert evaluate.main(argv) == 0
    out = capsys.readouterr().out
    row = json.loads((finished / "report.json").read_text())["test"][1]
    assert f"{row['accuracy']:.2%}" in out and f"{row['residual_mean']:.1e}" in out
    assert "after 2" in out and "rtol 0.1" in out and "after 1" not in out
    assert snapshot(finished) == before


def damage(checkpoint):
    for file in (checkpoint / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])


def test_damaged_newest_checkpoint_falls_back_then_trains_on(copy, capsys):
    damage(copy / "checkpoints" / str(STEPS))
    (copy / "report.json").unlink()
    assert evaluate.main(["--workdir", str(copy), "--budgets", "1", "--rtols"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "33 is damaged" in out and "step 22" in out
    assert train.main(command(copy)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "33 is damaged" in out and "resuming" in out and "at step 22 of 33" in out
    assert (copy / "damaged" / "33").is_dir() and (copy / "checkpoints" / "33").is_dir()


def test_no_readable_checkpoint_is_one_error(copy, capsys):
    for path in (copy / "checkpoints").iterdir():
        damage(path)
    (copy / "report.json").unlink()
    before = snapshot(copy)
    for main, argv in ((train.main, command(copy)), (evaluate.main, ["--workdir", str(copy)])):
        assert main(argv) == 2
        assert "none of the checkpoints" in capsys.readouterr().err
    assert snapshot(copy) == before


def test_missing_checkpoints(copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    assert evaluate.main(["--workdir", str(copy)]) == 2
    assert "no checkpoints" in capsys.readouterr().err


def test_checkpoints_of_an_unknown_config_are_left_alone(copy, capsys):
    (copy / "config.json").unlink()
    before = snapshot(copy)
    assert train.main(command(copy)) == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert snapshot(copy) == before


def test_lost_checkpoints_are_not_trained_over(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints")
    (copy / "report.json").unlink()
    before = snapshot(copy)
    assert train.main(command(copy)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "a checkpoint was saved, but there is none in" in error
    after = snapshot(copy)
    assert {name: after[name] for name in before} == before
