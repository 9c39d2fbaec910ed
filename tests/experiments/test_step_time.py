"""Step times of a trained run, its record, and the pictures that show times."""

import dataclasses
import json
import math

import pytest

from experiments import report, run_report, step_time, train
from experiments.studies import STUDIES, pictures
from experiments.studies.study import Variant
from experiments.tables import read_rows

pytestmark = pytest.mark.compiles

TINY = (
    "--loop.steps 3 --loop.test-every 1 --loop.power-iteration --loop.spectrum-examples 1 "
    "--loop.budgets 2 --loop.rtols 0.5 --pretrain.steps 1 --pretrain.evaluations 1 "
    "--model.channels 2 --model.head-channels 1 --model.head-features 4 --model.expansion 1 "
    "--model.groups 1 --data.batch-size 8 --optimizer.warmup-steps 0 "
    "--solver.kind picard --solver.depth None --solver.max-steps 2 --gradient.max-steps 2"
).split()


@pytest.mark.slow
def test_times_of_a_run_become_pictures(cache, tmp_path, monkeypatch):
    costs = next(study for study in STUDIES if study.name == "costs")
    over_time = pictures.quality_over_time(
        "quality_over_time", "Accuracy.", measure="accuracy", label="accuracy"
    )
    _, tiny = train.parse(["digits_mdeq", "--workdir", "unused", *TINY])
    monkeypatch.setattr(train, "load_run", lambda name: tiny.config)  # names stay short
    monkeypatch.setattr(run_report, "draw", lambda *_: {})  # its own pictures: test_runs.py
    study = dataclasses.replace(
        costs,
        variants=(Variant(label="tiny", run="digits_mdeq"),),
        seeds=(0,),
        pictures=(*costs.pictures, over_time),
    )
    monkeypatch.setattr(report, "STUDIES", (study,))
    (training,) = study.trainings()
    runs, results = tmp_path / "runs", tmp_path / "results"
    assert train.main(training.arguments(runs)) == 0
    folder = runs / training.folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert step_time.main(["--workdir", str(folder), "--steps", "1"]) == 0
    times = json.loads((folder / "step_time.json").read_text())
    for kind in ("plain", "penalized", "pretrain"):
        assert 0 < times[kind] < 60
    assert {p: p.read_bytes() for p in before} == before  # the run is left as it was

    assert report.collect(runs, results) == 1
    report.draw(study, results)
    (record,) = next(iter(report.records_of(study, results).values()))
    assert record.report["step_time"]["plain"] == pytest.approx(times["plain"], rel=1e-5)
    last = record.metrics["spectrum"][-1]
    assert math.isfinite(last["rayleigh_quotient_mean"]) and last["spectral_radius_mean"] > 0
    rows = {p.name: read_rows(results / "costs" / f"{p.name}.csv") for p in study.pictures}
    bars = {row["quantity"]: row["median"] for row in rows["costs"]}
    assert set(bars) == {"error", "step", "nfe", "memory"}
    assert all(math.isfinite(value) and value > 0 for value in bars.values())
    mean = (times["plain"] + times["penalized"]) / 2  # the penalty is on half of the steps
    assert bars["step"] == pytest.approx(1000 * mean, rel=1e-3)
    assert [row["step"] for row in rows["quality_over_time"]] == [1, 2, 3]
    seconds = [row["seconds"] for row in rows["quality_over_time"]]
    assert seconds == pytest.approx([times["pretrain"] + n * mean for n in range(3)], rel=1e-3)
    for picture in study.pictures:
        assert (results / "costs" / f"{picture.name}.png").stat().st_size > 10_000
    section = report.render(results)
    assert f"{1000 * times['plain']:.1f} / {1000 * times['penalized']:.1f}" in section
