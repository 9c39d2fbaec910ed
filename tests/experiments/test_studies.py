"""Studies: their runs exist, their records come back, RESULTS.md is what the command writes."""

import dataclasses
import json
import math
import signal

import pytest
from rich.console import Console

from experiments import report, study, train
from experiments.config import ConfigError
from experiments.config_files import load_run
from experiments.studies import STUDIES, Training, columns, pictures
from experiments.studies import records as kept
from experiments.studies.study import Variant
from experiments.tables import read_rows, spread, write_rows

VARIANTS = list({v.training(0): v for s in STUDIES for v in s.variants}.values())
STEPS = (10, 20)


def make_run(folder, training, *, accuracy=0.5, radius=2.0, loss=1.0, after=None):
    """A finished run as experiments.train leaves it, of made-up numbers."""
    folder.mkdir(parents=True)
    config = train.parse(training.arguments("runs"))[1].config
    (folder / "config.json").write_text(config.to_json())
    stops = [f"after {b}" for b in range(1, 7)] + ["rtol 0.01", "rtol 0.001"]
    test = [{"stop": s, "accuracy": accuracy, "nfe_forward": 4.0, "converged": 0.25} for s in stops]
    for row, budget in zip(test, range(1, 7), strict=False):
        row["budget"] = budget
    numbers = {"parameters": 12345, "step_temporary_mib": 55.25, "step_seconds": 0.125}
    origin = {
        "commit": "abc",
        "device": "CPU",
        "devices": 1,
        "cpu_cores": 2,
        "versions": {"jax": "1"},
    }
    whole = {
        **numbers,
        "seed": training.seed,
        "data": "d",
        "test": test,
        "spectral_radius_mean": radius,
        "wall_seconds": 100.0,
        "provenance": origin,
    }
    (folder / "report.json").write_text(json.dumps(whole))
    for name, measured in (after or {}).items():
        (folder / f"{name}.json").write_text(json.dumps(measured))
    common = {"loss_nats": loss, "nfe_forward": 7.0, "nfe_backward": 8.0, "step_seconds": 0.5}
    residuals = {"residual_mean": None, "residual_max": 0.5, "residual_backward": 0.25}
    lines = [{"step": s, "kind": "train", **common, **residuals} for s in STEPS]
    spectrum = {"spectral_radius_mean": radius, "jacobian_norm_mean": 3.0}
    lines += [{"step": 20, "kind": "test", "accuracy": accuracy}]
    lines += [{"step": s, "kind": "spectrum", **spectrum} for s in STEPS]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.training(0).folder[:60])
def test_every_run_has_a_configuration(variant, tmp_path):
    training = variant.training(7)
    name, arguments = train.parse(training.arguments(tmp_path))
    assert (name, arguments.config.seed) == (variant.run, 7)
    assert arguments.workdir == tmp_path / training.folder and len(training.folder) < 250
    same = dataclasses.replace(arguments.config, seed=0) == load_run(name)
    assert same == (not variant.overrides)  # an override changes something


def test_runs_are_shared_and_the_first_seeds_come_first():
    trainings = study.needed(STUDIES, None)
    assert len(trainings) == len(set(trainings)) == len({t.folder for t in trainings})
    assert [t.seed for t in trainings] == sorted(t.seed for t in trainings)
    assert study.needed(STUDIES, [1]) == [t for t in trainings if t.seed == 1]
    with pytest.raises(ConfigError, match="seeds must have one"):
        study.needed(STUDIES, [9])
    with pytest.raises(ConfigError, match="NAME must be some of .*costs.*all.*; got 'cost'"):
        study.chosen(["cost"])


def test_a_name_says_what_is_overridden():
    training = Training(run="a", overrides=("--b.c", "1", "--d.no-e"), seed=2)
    assert training.folder == "a,b.c=1,d.no-e,seed=2"
    assert training.arguments("runs") == (
        ["a", "--workdir", "runs/a,b.c=1,d.no-e,seed=2", "--b.c", "1", "--d.no-e", "--seed", "2"]
    )


def test_one_that_fails_does_not_stop_the_others(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    pool = study.Pool(tmp_path, 1, Console(width=200))
    commands = [study.Command(n, "train", (n,)) for n in ("no_such_run", "--help")]
    assert pool.run(commands) == ["no_such_run"]
    assert signal.getsignal(signal.SIGTERM) is before
    said = capfd.readouterr().out
    assert "1/2  failed (2)" in said and "2/2  finished" in said
    assert "no run is called 'no_such_run'" in (tmp_path / "no_such_run.log").read_text()


def test_a_record_comes_back(tmp_path):
    training = Training(run="digits_mdeq", seed=1)
    times = {"plain": 0.01, "penalized": 0.03, "pretrain": 0.002}
    make_run(tmp_path / "run", training, after={"step_time": times})
    assert not kept.keep(tmp_path / "nothing", tmp_path / "record")
    assert kept.keep(tmp_path / "run", tmp_path / "record")
    record = kept.read(tmp_path / "record")
    assert record is not None and record.report["seed"] == 1
    first, second = record.metrics["train"]
    assert first["step"] == 10 and math.isnan(first["residual_mean"])  # null in the metrics
    assert second["residual_max"] == 0.5 and "kind" not in second
    assert record.config["solver"]["max_steps"] == 8
    # 140 steps of pre-training, then half of the steps with the penalty
    assert pictures.seconds_until(record, 240) == pytest.approx(140 * 0.002 + 100 * 0.02)
    assert pictures.step_milliseconds(record) == pytest.approx(20)
    beside = dataclasses.replace(record, report={**record.report, "step_time": None})
    assert pictures.seconds_until(beside, 20) == pytest.approx(20 * 0.5)
    assert columns.at(record, "as trained")["budget"] == 6  # the largest within its 8


def test_a_table_has_the_seeds_numbers():
    assert spread([1.0, 3.0]) == "1.00, 3.00"  # too far apart for a mean
    assert spread([9.0, 11.0]) == "10.00 +- 1.41"
    assert spread([1.0, math.nan], 1) == "1.0, nan"


def test_new_runs_become_a_section_with_pictures(tmp_path):
    by_name = {s.name: s for s in STUDIES}
    results = tmp_path / "results"
    gamma = by_name["digits_gamma"]
    for training in gamma.trainings():
        accuracy = {0: 0.9, 1: 0.92, 2: 0.94}[training.seed]
        make_run(tmp_path / "runs" / training.folder, training, accuracy=accuracy)
    assert report.collect(tmp_path / "runs", results) == 9
    text = report.render(results)
    section = text[text.index(f"## {gamma.title}") :].split("\n## ")[0]
    assert "92.00 +- 2.00" in section
    assert (
        "python -m experiments.train digits_mdeq --workdir DIR --regularizer.gamma 0.5" in section
    )
    assert "9 runs: commit abc, 1 x CPU, 2 CPU cores, jax 1, data d." in section
    assert "## Copy memory" not in text  # it has no records
    report.draw(by_name["growing_instability"], results)
    folder = results / "growing_instability"
    assert (folder / "residuals_and_norm.png").stat().st_size > 10_000
    rows = read_rows(folder / "residuals_and_norm.csv")
    norms = [r for r in rows if r["quantity"] == "jacobian_norm_mean"]
    assert {(r["variant"], r["step"], r["median"]) for r in norms} == {
        (label, step, 3.0) for label in ("gamma 0", "gamma 2") for step in STEPS
    }
    assert not [r for r in rows if r["quantity"] == "residual_mean"]  # never finite: left out
    with pytest.raises(ConfigError, match="runs must hold finished runs"):
        report.collect(tmp_path / "elsewhere", results)


def test_losses_on_meshes_are_compared_to_all_digits(tmp_path):
    meshes = next(s for s in STUDIES if s.name == "meshes")
    alone, spread_out = meshes.variants[:2]
    assert (alone.devices, spread_out.devices) == (1, 8) and alone.run == spread_out.run
    start = "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python -m experiments.train "
    assert spread_out.command.startswith(start)
    runs, results = tmp_path / "runs", tmp_path / "results"

    def made(variant, losses):
        folder = make_run(runs / variant.training(0).folder, variant.training(0))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        train = [line | {"loss_nats": loss} for line, loss in zip(lines, losses, strict=False)]
        text = "".join(json.dumps(line) + "\n" for line in (*train, *lines[len(losses) :]))
        (folder / "metrics.jsonl").write_text(text)

    made(spread_out, (2.000002, 4.00002))
    report.collect(runs, results)
    assert meshes.title not in report.render(results)  # nothing to compare with
    made(alone, (2.0, 4.0))
    report.collect(runs, results)
    section = report.render(results).split(f"## {meshes.title}")[1]
    # the first step; all; in nats
    assert "| 1.0e-06 | 5.0e-06 | 5.0e-06 | 5.0e-06 | 5.0e-06 | 2.0e-05 | 2.00 to 4.00 |" in section


def test_a_run_has_the_devices_it_asks_for(tmp_path, monkeypatch):
    pool, started = study.Pool(tmp_path, 1, Console(width=200)), []
    monkeypatch.setattr(study.subprocess, "Popen", lambda *_, env, **__: started.append(env))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    for devices in (None, 1, 8):
        training = Training(run="digits_mdeq", devices=devices)
        pool._start(study.Command.training(training, tmp_path))
        assert ("devices" in training.folder) == (devices is not None)
    assert [env.get("JAX_NUM_CPU_DEVICES") for env in started] == [None, "1", "8"]
    assert [env["JAX_PLATFORMS"] for env in started[1:]] == ["cpu", "cpu"]


def test_a_missing_measurement_is_made_of_the_first_seed_only(tmp_path, monkeypatch):
    causal = next(s for s in STUDIES if s.name == "causal")
    monkeypatch.setattr(report, "STUDIES", (causal,))
    two = dataclasses.replace(causal, seeds=(0, 1))
    for training in two.trainings():
        make_run(tmp_path / "runs" / training.folder, training)
    (command,) = study._unmeasured([two, causal], two.trainings(), tmp_path / "runs")
    folder = tmp_path / "runs" / two.trainings()[0].folder
    assert (command.module, command.arguments) == ("leak", ("--workdir", str(folder)))
    rows = [{"causal": True, "stop": "after 4", "bits_per_byte": 3.5, "nfe_forward": 4.0}]
    rows = [row | {"leak_mean": 0.0, "leak_max": 0.25} for row in rows]
    (folder / "leak.json").write_text(json.dumps({"quality": "bits_per_byte", "rows": rows}))
    assert not study._unmeasured([two], two.trainings(), tmp_path / "runs")
    report.collect(tmp_path / "runs", tmp_path / "results")
    section = report.render(tmp_path / "results").split(f"## {causal.title}")[1]
    assert "| causal | after 4 | 3.5000 | 4.00 | 0.0e+00 | 2.5e-01 |" in section


def test_a_seed_that_is_not_finite_counts_as_infinite(tmp_path):
    small = {"digits_mdeq": (math.nan, math.nan, 3.0), "digits_mdeq_noreg": (1.0, 2.0, math.nan)}
    found = {}
    for run, values in small.items():
        variant = Variant(label=run, run=run)
        for seed, value in enumerate(values):
            folder = tmp_path / f"{run}{seed}"
            make_run(folder, variant.training(seed), radius=value)
            kept.keep(folder, folder / "record")
            found.setdefault(variant, []).append(kept.read(folder / "record"))
    for log in (True, False):
        panels = [pictures.Panel("spectrum", "spectral_radius_mean", "radius", log=log)]
        picture = pictures.curves("radius", "Radius.", panels)
        assert "not finite counts as infinite" in picture.caption
        write_rows(tmp_path / "rows.csv", picture.rows(found))
        rows = read_rows(tmp_path / "rows.csv")
        ends = [tuple(r[n] for n in ("median", "smallest", "largest")) for r in rows[::2]]
        assert ends == [(math.inf, 3.0, math.inf), (2.0, 1.0, math.inf)]
        figure = picture.draw(rows)
        figure.savefig(tmp_path / f"log{log}.png")
        assert figure.axes[0].get_ylim()[1] < 100  # infinity does not move the axes
    bar = pictures.Bar("radius", "radius", lambda record: record.report["spectral_radius_mean"])
    picture = pictures.bars("bars", "Bars.", [bar])
    figure = picture.draw(picture.rows(found))
    figure.savefig(tmp_path / "bars.png")
    assert [t.get_text() for t in figure.axes[0].texts] == ["inf\n3 to inf", "2\n1 to inf"]


def test_seeds_without_a_run_are_named(tmp_path):
    gamma = next(s for s in STUDIES if s.name == "digits_gamma")
    training = gamma.variants[0].training(1)
    make_run(tmp_path / "runs" / training.folder, training)
    report.collect(tmp_path / "runs", tmp_path / "results")
    said = "No finished run: gamma 0, seed 0, 2; gamma 0.5, seed 0, 1, 2; gamma 2, seed 0, 1, 2."
    assert said in report.render(tmp_path / "results")


def test_a_run_of_another_configuration_or_version_is_no_finished_one(tmp_path):
    training = Training(run="digits_mdeq")
    folder = make_run(tmp_path / training.folder, training)
    assert study.finished(training, tmp_path)
    older = dataclasses.replace(load_run("digits_mdeq"), seed=5)
    (folder / "config.json").write_text(older.to_json())
    for command in (study.finished, lambda _, runs: report.collect(runs, tmp_path / "results")):
        with pytest.raises(ConfigError, match=r"seed=0 holds .*\n  seed: 0 here, 5 in the workdir"):
            command(training, tmp_path)
    (folder / "config.json").write_text(load_run("digits_mdeq").to_json())
    (folder / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="older version: .* no wall_seconds, provenance"):
        study.finished(training, tmp_path)


def test_a_variant_is_trained_by_the_command_that_is_shown():
    variant = Variant(label="x", run="digits_mdeq", overrides=("--regularizer.gamma", "0.5"))
    words = variant.command.split()
    assert words[:3] == ["python", "-m", "experiments.train"]
    assert words[3:] == [variant.run, "--workdir", "DIR", *variant.overrides]


def test_results_are_what_the_command_writes():
    assert report.TEXT.read_text() == report.render(report.RESULTS)
