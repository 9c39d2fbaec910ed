"""Runs on images of small models, end to end: what they write, and that their loss falls."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from experiments import compare, evaluate, run_pictures, train
from experiments.build import build
from experiments.config_files import load_run
from experiments.image_data import CityscapesData
from jdeq.models import MDEQSegmenter

pytestmark = pytest.mark.compiles

LOOP = (
    "--loop.steps 4 --loop.test-every 2 --loop.spectrum-every 4 --loop.spectrum-examples 1 "
    "--loop.budgets 1 2 --loop.rtols 0.5 --optimizer.warmup-steps 1"
).split()
SOLVE = "--solver.max-steps 2 --gradient.max-steps 2 --pretrain.steps 0".split()
SMALL = {
    "scenes_mdeq_seg": (
        "--model.channels 4 --model.expansion 1 --model.groups 2 --model.downsamples 3 "
        "--model.dropout 0 --data.train-scenes 4 --data.test-scenes 3 --data.batch-size 2 "
        "--regularizer.gamma 0 --solver.kind picard --solver.depth None"
    ).split() + SOLVE,
    "digits_resnet": "--model.width 2 --model.blocks 1 --data.batch-size 32".split(),
    "digits_mondeq": "--model.channels 4 --data.batch-size 32".split(),
    "digits_deqvit": "--model.width 8 --model.hidden 8 --data.batch-size 32".split() + SOLVE,
}  # fmt: skip
DRAWN = {
    "scenes_mdeq_seg": {"solver", "equilibrium", "difficulty", "segmentation"},
    "digits_resnet": set(),
    "digits_mondeq": {"solver", "equilibrium", "difficulty"},
    "digits_deqvit": {"solver", "equilibrium", "difficulty"},
}


def pictures(directory):
    """The names of the images in TensorBoard's files."""
    found = set()
    for file in directory.iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):  # records: length, its checksum, an event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found |= {value.tag for value in event.summary.value if value.HasField("image")}
            at += 16 + size
    return found


@pytest.mark.parametrize(
    "name",
    [
        "digits_resnet",
        pytest.param("scenes_mdeq_seg", marks=pytest.mark.slow),
        pytest.param("digits_mondeq", marks=pytest.mark.slow),
        pytest.param("digits_deqvit", marks=pytest.mark.slow),
    ],
)
def test_a_run_leaves_its_numbers_and_pictures(name, tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "run"
    assert train.main([name, "--workdir", str(workdir), *LOOP, *SMALL[name]]) == 0
    drawn = {"training", "confusion"} | DRAWN[name]
    assert {path.stem for path in workdir.glob("*.png")} == drawn
    for path in workdir.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 5
    assert pictures(workdir / "tensorboard") == {f"report/{picture}" for picture in drawn}
    text = (workdir / "report.md").read_text()
    assert all(f"![{picture}]({picture}.png)" in text for picture in drawn)
    rows = json.loads((workdir / "report.json").read_text())["test"]
    quality = "mean_iou" if name == "scenes_mdeq_seg" else "accuracy"
    # A few steps from the start: better than no pixel or image, and far from all.
    assert all(0 < row[quality] < 0.6 for row in rows), rows
    assert all(0 < row["loss_nats"] < 2 * np.log(10) for row in rows), rows
    assert ("mean_iou" in rows[0]) == (quality == "mean_iou")
    stops = ["explicit"] if name == "digits_resnet" else ["after 1", "after 2", "rtol 0.5"]
    assert [row["stop"] for row in rows] == stops

    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "200")
    if name == "scenes_mdeq_seg":
        argv = ["--workdir", str(workdir), "--budgets", "1", "--rtols"]
        assert evaluate.main(argv) == 0
        out = capsys.readouterr().out
        assert "IoU" in out and f"{rows[0]['mean_iou']:.2%}" in out
        assert "3 test examples" in out
        other = tmp_path / "other"
        shutil.copytree(workdir, other)
        config = (other / "config.json").read_text()
        (other / "config.json").write_text(config.replace('"seed": 0', '"seed": 1'))
        assert compare.run(compare.Arguments(workdirs=(workdir, other))) == 0
        out = capsys.readouterr().out
        assert out.startswith("mean IoU in %") and f"{100 * rows[0]['mean_iou']:.2f} +- 0.00" in out


def test_few_of_the_test_images_make_no_confusion(monkeypatch, prepared):
    """And the picture of those that take long says how many there were to choose from."""
    data = CityscapesData(data_dir=str(prepared("cityscapes")), batch_size=2, held=2)
    config = dataclasses.replace(load_run("scenes_mdeq_seg"), data=data)
    task = data.build(0)
    run = types.SimpleNamespace(config=config, task=task, model=MDEQSegmenter(config.model))
    run.implicit = True
    found = types.SimpleNamespace(predicted=task.test.labels, nfe=np.array([3, 5]))
    monkeypatch.setattr(run_pictures, "evaluate_samples", lambda *args, **options: found)
    state = types.SimpleNamespace(averaged_variables={})
    figures = run_pictures._images(run, state)
    assert set(figures) == {"difficulty", "segmentation"}
    assert figures["difficulty"].get_suptitle() == "first 2 test images"
    whole = types.SimpleNamespace(**vars(run) | {"task": dataclasses.replace(task, scored=None)})
    figures = run_pictures._images(whole, state)
    assert "confusion" in figures and figures["difficulty"].get_suptitle() == ""


def losses(config, steps):
    """The training loss of each of the first steps."""
    run = build(config)
    state, step, found = run.initial_state(), run.train_step(run.model), []
    for position in range(steps):
        state, metrics = step(state, run.task.batches(position), 0.0, penalize=False)
        found.append(float(metrics["loss_nats"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls_in_20_steps(name):
    config = load_run(name)
    warm = dataclasses.replace(config.optimizer, warmup_steps=5)
    found = losses(dataclasses.replace(config, optimizer=warm), 20)
    assert np.isfinite(found).all()
    # The slowest is DEQ-ViT, which has fallen by 6% then.
    assert np.mean(found[-5:]) < 0.97 * np.mean(found[:5]), found


def test_the_loss_of_a_tiny_residual_network_falls_in_20_steps():
    config = load_run("digits_resnet")
    small = dataclasses.replace(config.model, width=8, blocks=(1,))
    warm = dataclasses.replace(config.optimizer, warmup_steps=2, learning_rate=2e-2)
    found = losses(dataclasses.replace(config, model=small, optimizer=warm), 20)
    assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5]), found


def test_the_splitting_reaches_the_model():
    config = load_run("digits_mondeq")
    model = build(config).model
    assert model.splitting == config.splitting.build()
    bare = dataclasses.replace(config, splitting=type(config.splitting)())
    assert build(bare).model.splitting is None
    assert jax.tree.leaves(build(bare).abstract_state().params)
