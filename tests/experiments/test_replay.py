"""A run that is given up, and the sample that did it."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments import replay, train
from experiments.data import DigitsData

BAD, SAMPLE = (7, 8), 3


class Poisoned:
    """Batches of which some hold a NaN in one sample."""

    def __init__(self, batches):
        self._batches = batches
        self.batch_size, self.batches_per_epoch = batches.batch_size, batches.batches_per_epoch

    def __call__(self, position):
        images, labels = self._batches(position)
        images = images.copy()
        if position in BAD:
            images[SAMPLE, 0, 0] = np.nan
        return type(self._batches(0))(images, labels)


@pytest.fixture
def poison(monkeypatch):
    build = DigitsData.build

    def poisoned(self, seed):
        task = build(self, seed)
        return dataclasses.replace(task, batches=Poisoned(task.batches))

    monkeypatch.setattr(DigitsData, "build", poisoned)


def command(workdir):
    return (
        f"digits_mondeq --workdir {workdir} --model.channels 4 --data.batch-size 16 "
        "--loop.steps 20 --loop.save-every 5 --loop.log-every 1 --loop.test-every 20 "
        "--loop.spectrum-every 20 --loop.max-skipped 2 --optimizer.warmup-steps 2"
    ).split()


def test_the_sample_that_stopped_a_run_is_found(poison, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train.main(command(workdir)) == 1
    error = capsys.readouterr().err
    again = f"python -m experiments.replay --workdir {workdir}"
    assert "2 steps in a row" in error and "nonfinite.json" in error and again in error
    written = json.loads((workdir / "nonfinite.json").read_text())
    assert written["replay"] == again and written["seed"] == 0
    assert [(s["position"], s["phase"], s["penalize"]) for s in written["steps"]] == [
        (7, 0, False),
        (8, 0, False),
    ]
    # The solve gives the last finite state, so that the loss is finite.
    assert all(s["metrics"]["grad_norm"] == "nan" for s in written["steps"])
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}

    assert replay.main(["--workdir", str(workdir)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint of step 5, going on to step 7" in out
    for position in BAD:
        assert re.search(rf"step {position}: loss .*, gradient norm nan; .* fault: 1 of 16", out)
    rows = [line.split() for line in out.splitlines() if "not finite" in line]
    assert len(rows) == 2 and all(row[1] == str(SAMPLE) for row in rows)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_there_must_be_something_to_replay(tmp_path, capsys):
    assert replay.main(["--workdir", str(tmp_path)]) == 2
    assert "nonfinite.json is missing: no run there was given up" in capsys.readouterr().err
    (tmp_path / "nonfinite.json").write_text("{")
    assert replay.main(["--workdir", str(tmp_path)]) == 2
    assert "nonfinite.json cannot be read" in capsys.readouterr().err
