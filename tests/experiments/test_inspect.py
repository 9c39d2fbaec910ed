"""`experiments.inspect` from the command line: whole runs, and what cannot be inspected."""

import html
import inspect as standard_library
import json
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import inspect, train, trained
from experiments.build import build
from experiments.config_files import load_run

pytestmark = pytest.mark.compiles

ROOT = pathlib.Path(__file__).parents[2]
LOOP = (
    "--loop.steps 3 --loop.test-every 3 --loop.spectrum-every 3 --loop.spectrum-examples 1 "
    "--loop.budgets 2 --loop.rtols 0.1"
).split()
RUNS = {
    "synthetic": "--model.hidden 8 --data.train-pairs 64 --data.test-pairs 16",
    "stdlib_deq_jr": (
        "--model.width 8 --model.heads 2 --model.hidden 8 --model.memory 4 --data.length 4 "
        "--data.batch-size 2 --data.test-windows 2 --data.test-length 12 --pretrain.steps 0 "
        "--optimizer.warmup-steps 1 --solver.max-steps 3 --gradient.max-steps 3"
    ),
    "scenes_mdeq_seg": (
        "--model.channels 4 --model.expansion 1 --model.groups 2 --model.downsamples 3 "
        "--model.dropout 0 --data.train-scenes 4 --data.test-scenes 3 --data.batch-size 2 "
        "--regularizer.gamma 0 --solver.kind picard --solver.depth None --solver.max-steps 2 "
        "--gradient.max-steps 2 --pretrain.steps 0 --optimizer.warmup-steps 1"
    ),
}


def snapshot(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "synthetic" else pytest.mark.every)
        for name in RUNS
    ],
)
def test_a_run_of_each_kind_is_inspected(name, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    assert train.main([name, "--workdir", str(workdir), *LOOP, *RUNS[name].split()]) == 0
    before = snapshot(workdir)
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "200")
    assert inspect.main(["--workdir", str(workdir), "--examples", "2"]) == 0
    out = capsys.readouterr().out
    after = snapshot(workdir)
    page, numbers = workdir / "inspect" / "index.html", workdir / "inspect" / "numbers.json"
    assert set(after) - set(before) == {page, numbers}
    assert {path: after[path] for path in before} == before

    found = json.loads(numbers.read_text())
    assert set(found["tolerances"]) == {"0.1"} and found["about"]["step"] == 3
    causal = name == "stdlib_deq_jr"
    assert found["sample"] == ("position" if causal else "example")
    # Of text every position that counts, 2 windows of 12; else each example.
    counts = {"synthetic": 16, "stdlib_deq_jr": 24, "scenes_mdeq_seg": 3}
    assert found["tolerances"]["0.1"]["count"] == counts[name]
    assert len(found["spectrum"]["radius"]) == 2
    assert {"Picard", "Anderson", "Broyden", "NewtonKrylov"} <= {
        solver.split(" ")[0] for solver in found["solvers"]
    }
    assert {"Implicit (this run)", "OneStep", "Phantom", "Neumann"} <= set(found["rules"])
    # Near-linear maps are solved tightly; the scenes' cell after three steps does not contract.
    tight = found["reference"]["residual"] < 1e-8
    assert tight == (name != "scenes_mdeq_seg")
    assert all(0 < rule["evaluations"] for rule in found["rules"].values())
    quality = {"synthetic": "rmse", "stdlib_deq_jr": "bits_per_byte", "scenes_mdeq_seg": "mean_iou"}
    report = json.loads((workdir / "report.json").read_text())["test"]
    assert all(quality[name] in row for row in found["settings"].values())
    assert quality[name] in report[0]
    assert found["advice"].split()[0] in ("Take", "Keep", "Nothing", "No")
    assert found["advice"] in " ".join(out.split())
    assert html.escape(found["advice"]) in page.read_text()
    for heading in ("at tolerances", "Solvers", "Spectrum", "each rule", "cheaper"):
        assert heading in out and heading in page.read_text()


@pytest.fixture
def restored(monkeypatch):
    """`trained.load` of a run that was never made."""

    def use(name):
        run = build(load_run(name))
        state = types.SimpleNamespace(averaged_variables={}, step=0)
        monkeypatch.setattr(
            trained, "load", lambda *args, **how: (run, types.SimpleNamespace(state=state))
        )

    return use


def refused(tmp_path, capsys, *options):
    code = inspect.main(["--workdir", str(tmp_path / "run"), *options])
    assert code == 2 and not (tmp_path / "run").exists()
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert "config.json" in refused(tmp_path, capsys)


def test_an_explicit_model_is_refused(restored, tmp_path, capsys):
    restored("digits_resnet")
    err = refused(tmp_path, capsys)
    assert err == "error: workdir must hold a run with an equilibrium; a ResNet is explicit\n"


def test_options_that_cannot_be_are_refused(restored, tmp_path, capsys):
    restored("synthetic")
    (tmp_path / "file").touch()
    for options, message in (
        (["--rtols", "0.1", "1.5"], "rtols must be in (0, 1); got 1.5"),
        (["--rtols"], "rtols must not be empty"),
        (["--examples", "0"], "examples must be in 1..1000; got 0"),
        (["--examples", "1001"], "examples must be in 1..1000; got 1001"),
        (["--out", str(tmp_path / "file")], "out must be a directory that can be written; got"),
        (["--out", str(tmp_path / "file" / "a")], "out must be a directory that can be written"),
        (["--out", "/proc"], "out must be a directory that can be written; got /proc ("),
    ):
        assert message in refused(tmp_path, capsys, *options)


def test_the_module_does_not_hide_that_of_the_standard_library():
    assert pathlib.Path(standard_library.__file__).parent == pathlib.Path(json.__file__).parents[1]
    code = (
        "import experiments.inspect, inspect, sys; assert inspect.signature; "
        "assert not any(p.rstrip('/').endswith('experiments') for p in sys.path), sys.path"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
