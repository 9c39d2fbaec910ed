"""A run as one file: the same outputs as the live model, at any batch size, without jdeq."""

import hashlib
import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from rich.console import Console
from sklearn import datasets

from experiments import export, stopping, trained, workdir
from experiments.build import build
from experiments.config_files import read_config
from experiments.train import parse
from jdeq.training import Checkpoints

pytestmark = pytest.mark.compiles

MDEQ = (
    "--model.channels 4 --model.head-channels 2 --model.head-features 8 --model.expansion 1 "
    "--model.groups 2 --solver.depth 2 --solver.max-steps 4"
).split()
REVDEQ_LM = (
    "--model.length 16 --model.width 8 --model.heads 2 --data.length 16 --data.batch-size 2 "
    "--data.test-windows 4"
).split()
DEQ_LM = (
    "--model.width 8 --model.heads 2 --model.hidden 8 --data.length 4 --data.batch-size 2 "
    "--data.test-length 12 --data.test-windows 2 --solver.max-steps 2"
).split()
COPY = "--data.delay 4 --data.train-examples 16 --data.test-examples 6 --data.batch-size 2".split()
# Logits and residuals are of size 1, and float32 resolves 1e-7. With the parameters as constants
# of the program XLA may add in another order, which a few evaluations do not amplify much.
CLOSE = 1e-6

LOAD = """
import pathlib, sys
import jax.export
import numpy as np

file, data = sys.argv[1:]
model = jax.jit(jax.export.deserialize(pathlib.Path(file).read_bytes()).call)
outputs = {}
for name, inputs in np.load(data).items():
    outputs |= {f"{name} {key}": value for key, value in model(inputs).items()}
np.savez(data, **outputs)
assert not {"flax", "jdeq", "experiments"} & set(sys.modules)
"""


def saved(directory, name, options):
    """A workdir as training leaves it, with the parameters that it starts from."""
    _, arguments = parse([name, "--workdir", str(directory), *options])
    run = build(arguments.config)
    workdir.claim(directory, run.config)
    checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, report=print)
    checkpoints.save(run.initial_state(), {"data": run.task.data, "train_seconds": 0.0})
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "images", "digits_mdeq", MDEQ)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "text", "stdlib_revdeq_lm", REVDEQ_LM)


@pytest.fixture(scope="module")
def explicit(tmp_path_factory):
    options = "--model.width 2 --model.blocks 1".split()
    return saved(tmp_path_factory.mktemp("runs") / "explicit", "digits_resnet", options)


def snapshot(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_same_without_jdeq(directory, inputs, stop, scratch, capsys):
    """Exported and loaded in another process: batches of 1, 3 and 7 against the live model."""
    before = snapshot(directory)
    file, data = scratch / "model", scratch / "data.npz"
    (name, value) = next(iter(stop.items()))
    argv = ["--workdir", str(directory), "--output", str(file), f"--{name}", str(value)]
    assert export.main(argv) == 0
    assert snapshot(directory) == before
    assert {path.name for path in scratch.iterdir()} == {"model", "model.json"}
    assert f"pathlib.Path('{file}')" in capsys.readouterr().out

    np.savez(data, **{str(size): inputs[:size] for size in (1, 3, 7)})
    subprocess.run([sys.executable, "-c", LOAD, str(file), str(data)], check=True)
    run, restored = trained.load(directory, Console())
    model = run.model.clone(**stopping.stop_options(run.model, stop))
    got = np.load(data)
    for size in (1, 3, 7):
        logits, solution = jax.jit(model.apply)(restored.state.variables, inputs[:size])
        for key, want in {"logits": logits, **solution.stats._asdict()}.items():
            atol = CLOSE if key in ("logits", "residual") else 0
            np.testing.assert_allclose(got[f"{size} {key}"], want, rtol=0, atol=atol)

    facts = json.loads((scratch / "model.json").read_text())
    assert facts["stop"][name] == value and facts["statuses"]["0"] == "CONVERGED"
    assert facts["input"]["shape"] == ["batch", *inputs.shape[1:]]
    assert facts["input"]["dtype"] == str(inputs.dtype)
    config = (directory / "config.json").read_bytes()
    assert facts["config_sha256"] == hashlib.sha256(config).hexdigest()
    live, loaded = facts["test"]["live"], facts["test"]["file"]
    assert loaded == pytest.approx(live, abs=10 * CLOSE)  # means, and what is made of them
    return facts


@pytest.mark.xdist_group("export")
def test_images_to_a_tolerance(images, tmp_path, capsys):
    inputs = np.random.default_rng(0).normal(size=(7, 8, 8, 1)).astype(np.float32)
    facts = assert_same_without_jdeq(images, inputs, {"rtol": 0.1}, tmp_path, capsys)
    assert facts["outputs"]["logits"] == {"shape": ["batch", 10], "dtype": "float32"}
    assert facts["test"]["file"]["converged"] == 1
    assert "accuracy" in facts["test"]["file"]


@pytest.mark.xdist_group("export")
def test_what_is_printed_makes_inputs_of_images(images, tmp_path, capsys):
    assert export.main(["--workdir", str(images), "--output", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    code = printed[printed.index("  import pathlib") :].splitlines()
    names = {"pixels": datasets.load_digits().images[..., None]}
    exec("\n".join(line.strip() for line in code), names)
    inputs, test = names["inputs"], build(read_config(images / workdir.CONFIG_FILE)).task.test
    for image, label in zip(test.inputs[:20], test.labels[:20], strict=True):
        (same,) = np.flatnonzero(np.abs(inputs - image).max(axis=(1, 2, 3)) < 1e-6)
        assert datasets.load_digits().target[same] == label
    assert names["outputs"]["logits"].shape == (1797, 10)


@pytest.mark.slow  # with the compiler as users have it: the quick one rounds further apart
@pytest.mark.xdist_group("export_text")
def test_text_to_a_hard_stop(text, tmp_path, capsys):
    inputs = np.random.default_rng(0).integers(256, size=(7, 16), dtype=np.int32)
    facts = assert_same_without_jdeq(text, inputs, {"budget": 4}, tmp_path, capsys)
    assert facts["outputs"]["nfe"] == {"shape": ["batch", 16], "dtype": "int32"}
    assert facts["test"]["file"]["nfe_forward"] == 5  # one measures the residual
    assert "bits_per_byte" in facts["test"]["file"]


SCENES = (
    "--model.channels 4 --model.expansion 1 --model.groups 2 --data.train-scenes 4 "
    "--data.test-scenes 3 --data.batch-size 2 --loop.spectrum-examples 1"
).split()


@pytest.mark.parametrize(
    ("name", "options", "logits"),
    [
        ("digits_deqvit", "--model.width 8 --model.hidden 8".split(), "[batch,10]"),
        ("digits_mondeq", ["--model.channels", "4"], "[batch,10]"),
        ("scenes_mdeq_seg", SCENES, "[batch,64,64,11]"),
        ("copy_memory", ["--model.width", "6", "--model.dilations", "2", *COPY], "[batch,24,10]"),
        ("copy_memory_lstm", ["--model.hidden", "5", *COPY], "[batch,24,10]"),
        ("stdlib_transformer", ["--data.test-windows", "2"], "[batch,64,256]"),
    ],
)
def test_every_kind_of_model_is_a_program_for_any_batch(name, options, logits, tmp_path):
    _, arguments = parse([name, "--workdir", str(tmp_path), *options])
    run = build(arguments.config)
    variables, inputs = run.initial_state().variables, run.task.test_inputs(1)
    content = export.serialize(run.model, variables, inputs, platforms=["cpu", "cuda", "tpu"])
    program = jax.export.deserialize(content)
    assert program.platforms == ("cpu", "cuda", "tpu")
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    assert str(outputs["logits"]) == f"float32{logits}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "special",
    [
        ["--model.memory", "4"],  # read by segments of 4 in training
        ["--model.memory", "4", "--model.cutoffs", "20", "60"],  # trained on losses
    ],
)
def test_memory_and_large_vocabulary(special, tmp_path):
    directory = saved(tmp_path / "run", "stdlib_deq_jr", [*DEQ_LM, *special])
    assert export.main(["--workdir", str(directory)]) == 0
    facts = json.loads((directory / "model.jaxexport.json").read_text())
    assert facts["input"] == {"shape": ["batch", 4], "dtype": "int32"}
    assert facts["outputs"]["logits"]["shape"] == ["batch", 4, 256]
    live, loaded = facts["test"]["live"], facts["test"]["file"]
    assert live.keys() <= loaded.keys()
    assert {name: loaded[name] for name in live} == pytest.approx(live, abs=10 * CLOSE)


@pytest.mark.xdist_group("export_explicit")
def test_for_another_platform_it_is_written_and_not_tried(explicit, tmp_path, capsys):
    file = tmp_path / "model"
    argv = ["--workdir", str(explicit), "--output", str(file), "--platforms", "cuda", "tpu"]
    assert export.main(argv) == 0
    assert "not tried: it does not run on this platform, cpu" in capsys.readouterr().out
    assert jax.export.deserialize(file.read_bytes()).platforms == ("cuda", "tpu")
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["platforms"] == ["cuda", "tpu"] and facts["stop"] == {"stop": "explicit"}
    assert facts["test"].keys() == {"live"}


@pytest.mark.xdist_group("export_explicit")
def test_what_is_there_is_not_written_over(explicit, tmp_path, capsys):
    for there in ("model", "model.json"):
        directory = tmp_path / there
        directory.mkdir()
        (directory / there).write_text("mine")
        argv = ["--workdir", str(explicit), "--output", str(directory / "model")]
        assert export.main(argv) == 2
        assert f"output {directory / there} is there already" in capsys.readouterr().err
        assert [path.read_text() for path in directory.iterdir()] == ["mine"]


def assert_refused(directory, options, message, capsys):
    before = snapshot(directory)
    assert export.main(["--workdir", str(directory), *options]) == 2
    assert message in capsys.readouterr().err
    assert snapshot(directory) == before


@pytest.mark.xdist_group("export_text")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rtol", "0.1", "--budget", "2"], "rtol and budget must not both be given; got 0.1 and"),
        (["--rtol", "1"], "rtols must be in (0, 1); got 1.0"),
        (["--budget", "3"], "budgets must be multiples of 2 for Reversible"),
    ],
)
def test_stops_that_cannot_be_are_refused(text, options, message, capsys):
    assert_refused(text, options, message, capsys)


@pytest.mark.xdist_group("export_explicit")
def test_what_does_not_fit_is_refused(explicit, tmp_path, monkeypatch, capsys):
    assert_refused(
        explicit, ["--budget", "2"], "budget must be None for an explicit model; got 2", capsys
    )
    nowhere = tmp_path / "nowhere" / "model"
    message = f"output must be in a directory that is there; got {nowhere}"
    assert_refused(explicit, ["--output", str(nowhere)], message, capsys)
    assert_refused(tmp_path, [], "no run in", capsys)
    monkeypatch.setattr(export, "_LARGEST", 2**8)
    assert_refused(explicit, [], "workdir must hold a model of less than", capsys)
