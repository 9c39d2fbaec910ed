"""One run as a job: on several devices, in several processes, killed and resumed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import launch
from experiments.build import build
from experiments.config_files import read_config
from jdeq.training import Checkpoints, read_metrics

pytestmark = [pytest.mark.xdist_group("launch")]

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 24
SMALL = (
    "digits_mdeq --model.channels 8 --model.head-channels 4 --model.head-features 8 "
    "--model.expansion 1 --model.groups 2 --model.dropout 0.0 --data.batch-size 64 "
    f"--loop.steps {STEPS} --loop.save-every 6 --loop.test-every 12 --loop.spectrum-every 24 "
    "--loop.log-every 1 --loop.spectrum-examples 4 --loop.budgets 1 --loop.rtols 0.1 "
    "--optimizer.warmup-steps 5 --pretrain.steps 6 --pretrain.evaluations 2 --solver.depth 2 "
    "--solver.max-steps 4 --gradient.max-steps 4 --regularizer.probability 1.0"
).split()
TRANSFORMER = (
    "stdlib_deq --loop.steps 30 --loop.log-every 1 --loop.save-every 30 --loop.test-every 30 "
    "--loop.spectrum-every 30 --loop.spectrum-examples 1 --loop.budgets 1 --loop.rtols 0.5 "
    "--data.test-windows 1 --pretrain.steps 10 --optimizer.warmup-steps 10"
).split()
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def start(workdir, *, run=SMALL, processes=1, devices=1, mesh=()):
    """The job, begun in the background."""
    command = [*run, "--workdir", str(workdir), *mesh]
    if processes == 1:
        argv = [sys.executable, "-m", "experiments.train", *command]
    else:
        argv = [sys.executable, "-m", "experiments.launch", "--processes", str(processes)]
        argv += ["--devices-per-process", str(devices), "--", *command]
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, **QUICK, "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(job, *, code=0, timeout=900):
    out, _ = job.communicate(timeout=timeout)
    assert job.returncode == code, out
    return out


def wait_for_step(job, workdir, step, *, timeout=600):
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + timeout
    while not (metrics.exists() and metrics.read_text().count('"train"') >= step):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
        time.sleep(0.01)


def losses(workdir):
    return [r["loss_nats"] for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "train"]


def parameters(workdir):
    run = build(read_config(workdir / "config.json"))
    restored = Checkpoints(workdir / "checkpoints", read_only=True).restore(run.abstract_state())
    assert int(restored.state.step) == STEPS
    return jax.device_get((restored.state.variables, restored.state.opt_state))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on one device."""
    workdir = tmp_path_factory.mktemp("launch") / "alone"
    finish(start(workdir))
    return workdir


@pytest.mark.slow
def test_two_processes_of_four_devices_train_alike_and_sigterm_saves_one_step(alone, tmp_path):
    workdir, mesh = tmp_path / "job", ("--mesh.data", "4", "--mesh.fsdp", "2")
    job = start(workdir, processes=2, devices=4, mesh=mesh)
    wait_for_step(job, workdir, 8)
    job.send_signal(signal.SIGTERM)
    out = finish(job)
    saved = Checkpoints(workdir / "checkpoints", read_only=True).steps()[-1]
    assert f"SIGTERM: stopped after step {saved} of {STEPS}" in out and 8 <= saved < STEPS
    # Resumed on another mesh, by one process of four devices.
    finish(start(workdir, devices=4, mesh=("--mesh.fsdp", "2")))
    # Sums of float32 in another order.
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


@pytest.mark.every
def test_two_processes_of_four_devices_train_the_transformer_alike(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(one, run=TRANSFORMER), timeout=3000)
    mesh = ("--mesh.data", "4", "--mesh.fsdp", "2")
    finish(start(two, run=TRANSFORMER, processes=2, devices=4, mesh=mesh), timeout=3000)
    assert len(losses(one)) == 30
    # Sums of float32 in another order.
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.parametrize(
    "times", [pytest.param(5, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.every)]
)
def test_killed_at_any_moment_it_ends_the_same(alone, tmp_path, times):
    """Four of five times by SIGKILL; a sixth of the steps are followed by a save, which some
    kills meet. A run that ends in spite of them is compared, and another one begun.
    """

    def compare(workdir):
        pairs = zip(*map(jax.tree.leaves, map(parameters, (alone, workdir))), strict=True)
        for one, two in pairs:
            np.testing.assert_array_equal(one, two)
        assert losses(alone) == losses(workdir)

    rng, kills, ended = np.random.default_rng(0), 0, 0
    while kills < times:
        workdir = tmp_path / f"killed{ended}"
        reached = len(losses(workdir)) if (workdir / "metrics.jsonl").exists() else 0
        job = start(workdir)
        if rng.random() < 0.7 and reached < STEPS - 2:
            wait_for_step(job, workdir, reached + 1)
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(rng.uniform(0, 15))
        if job.poll() is None:
            job.send_signal(signal.SIGTERM if kills % 5 == 4 else signal.SIGKILL)
            kills += 1
        out, _ = job.communicate()
        assert job.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), out
        if (workdir / "report.json").exists():
            compare(workdir)
            ended += 1
    finish(start(workdir))
    compare(workdir)


def test_options_that_cannot_be(capsys):
    with pytest.raises(SystemExit):
        launch.main(["--processes", "0", "--", "digits_mdeq"])
    assert "--processes must be >= 1; got 0" in capsys.readouterr().err


def test_a_process_that_fails_ends_the_job(tmp_path):
    job = start(tmp_path / "job", processes=2, mesh=("--mesh.data", "3"))
    out = finish(job, code=2, timeout=300)
    assert "data * fsdp * tensor must be the number of devices, 2" in out


def test_a_process_that_fails_alone_ends_the_job(tmp_path):
    """Only the first one looks into the workdir before the others wait for it."""
    (tmp_path / "job" / "checkpoints").mkdir(parents=True)
    out = finish(start(tmp_path / "job", processes=2), code=2, timeout=300)
    assert "holds checkpoints, but" in out
