"""Runs on the copy memory task from the command line: the DEQ, and a model that solves nothing."""

import json

import pytest

from experiments import compare, evaluate, train
from experiments.config_files import load_run, read_config

DATA = (
    "--data.delay 4 --data.train-examples 16 --data.test-examples 6 --data.batch-size 2 "
    "--loop.steps 4 --loop.test-every 2 --loop.spectrum-every 4 --loop.spectrum-examples 1 "
    "--loop.budgets 2 --loop.rtols 0.1 --optimizer.warmup-steps 1"
).split()
SIZES = {
    "copy_memory": "--model.width 6 --model.dilations 2 --solver.max-steps 2".split(),
    "copy_memory_lstm": ["--model.hidden", "5"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir for each of the two runs."""
    directory = tmp_path_factory.mktemp("runs")
    for name, size in SIZES.items():
        argv = [name, "--workdir", str(directory / name), *DATA, *size]
        assert train.main(argv) == 0
    return directory


@pytest.mark.xdist_group("copy_memory")
def test_reports(finished, capsys):
    rows = {name: json.loads((finished / name / "report.json").read_text()) for name in SIZES}
    assert [row["stop"] for row in rows["copy_memory"]["test"]] == ["after 2", "rtol 0.1"]
    assert [row["stop"] for row in rows["copy_memory_lstm"]["test"]] == ["explicit"]
    for name, row in rows.items():
        assert 0 < row["test"][0]["loss_nats"] < 5
        text = (finished / name / "report.md").read_text()
        assert "loss (nats)" in text
        pictures = {path.stem for path in (finished / name).glob("*.png")}
        assert all(f"![{picture}]" in text for picture in pictures)
        assert ("equilibrium" in pictures) == (name == "copy_memory")
        assert evaluate.main(["--workdir", str(finished / name)]) == 0
    capsys.readouterr()
    workdirs = tuple(finished / name for name in SIZES)
    assert compare.run(compare.Arguments(workdirs=workdirs)) == 0
    assert "explicit" in capsys.readouterr().out


@pytest.mark.xdist_group("copy_memory")
def test_the_configuration_comes_back(finished):
    for name in SIZES:
        config = read_config(finished / name / "config.json")
        assert type(config.model) is type(load_run(name).model)
        assert config.data.delay == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy_memory_lstm", ["--solver.max-steps", "3"], "solver must be left as it is"),
        ("copy_memory", ["--model.vocab-size", "9"], "model.vocab_size must be 10"),
        ("copy_memory", ["--data.delay", "0"], "length must be >= 1; got 0"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert train.main([name, "--workdir", str(workdir), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not workdir.exists()
