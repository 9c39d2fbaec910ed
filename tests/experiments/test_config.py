"""The configuration system: what a name and a command line become, and what is refused."""

import dataclasses
import importlib
import json

import pytest

import jdeq
from experiments import evaluate, train
from experiments.build import build
from experiments.config import (
    ConfigError,
    GradientConfig,
    RegularizerConfig,
    SolverConfig,
    SplittingConfig,
)
from experiments.config_files import differences, load_run, read_config, run_names
from jdeq.layers import ForwardBackward


def parsed(*argv):
    return train.parse(["digits_mdeq", "--workdir", "w", *argv])[1].config


def test_command_line_changes_nested_fields():
    config = parsed("--solver.depth", "4", "--model.channels", "8", "16", "--seed", "2")
    assert (config.solver.depth, config.model.channels, config.seed) == (4, (8, 16), 2)
    assert config.solver.kind == load_run("digits_mdeq").solver.kind


def test_unknown_key_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit_:
        parsed("--solver.dept", "4")
    assert exit_.value.code == 2
    assert "--solver.depth" in capsys.readouterr().err


def test_unknown_choice_lists_the_choices(capsys):
    with pytest.raises(SystemExit):
        parsed("--solver.kind", "andersen")
    assert "'anderson'" in capsys.readouterr().err


def test_a_model_that_cannot_be_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        parsed("--model.channels", "8", "--model.head-channels", "2", "2")
    assert exit_.value.code == 2
    assert "head_channels must have one entry per scale" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits_mdqe", "--workdir", "w"], "no run is called 'digits_mdqe'; perhaps digits_mdeq"),
        (["--workdir", "w"], "the name of a run comes first; runs: cifar10_densenet121, cifar"),
        ([], "the name of a run comes first"),
    ],
)
def test_unknown_run(argv, message, capsys):
    assert train.main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_runs_and_the_fields(capsys):
    for argv, text in ((["--help"], "digits_mdeq_noreg"), (["digits_mdeq", "--help"], "--workdir")):
        with pytest.raises(SystemExit) as exit_:
            train.main(argv)
        assert exit_.value.code == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        (["--solver.kind", "picard"], "solver.depth", "is not an option of solver.kind picard"),
        (["--solver.history", "4"], "solver.history", "is not an option of solver.kind anderson"),
        (["--gradient.terms", "4"], "gradient.terms", "is not an option of gradient.kind implicit"),
        (["--solver.depth", "0"], "solver", "depth must be >= 1; got 0"),
        (["--data.batch-size", "2000"], "batch_size", "must be in 1..1437"),
        (["--model.num-classes", "5"], "model.num_classes", "must be 10"),
        (["--pretrain.steps", "99999"], "pretrain.steps", "the length of the run"),
        (["--regularizer.stop", "140"], "regularizer.stop", "must be > pretrain.steps (140)"),
        (["--loop.spectrum-examples", "361"], "loop.spectrum_examples", "must be <= 360"),
        (["--seed", "-1"], "seed", "must be >= 0; got -1"),
        (["--optimizer.plateau-steps", "5"], "optimizer.plateau_steps", "must be None without"),
        (["--optimizer.decay-every", "5"], "optimizer.decay_every", "must be None without"),
        (["--optimizer.schedule", "steps"], "optimizer.decay_factor", "must be given with"),
        (["--optimizer.momentum", "0.5"], "optimizer.momentum", "None without the kind sgd"),
        (["--splitting.kind", "forward_backward"], "splitting", "a MDEQConfig is none"),
        (["--splitting.step", "0.5"], "splitting.step", "needs a splitting.kind"),
        (["--optimizer.schedule", "plateau"], "optimizer.plateau_factor", "must be given with"),
        (["--loop.profile-from", "560"], "loop.profile_from", "must be < 560, the length"),
        (["--optimizer.accumulate", "3"], "optimizer.accumulate", "(560); got 3"),
        (["--loop.steps", "0"], "loop.steps", "must be >= 1; got 0"),
        (["--loop.budgets", "2", "0"], "loop.budgets", "must be >= 1; got (2, 0)"),
        (["--loop.rtols", "2.0"], "loop.rtols", "must lie in (0, 1); got (2.0,)"),
        (["--optimizer.warmup-steps", "99999"], "optimizer", "warmup_steps must be in"),
    ],
)  # fmt: skip
def test_bad_values_are_one_error_and_nothing_is_written(options, field, message, capsys, tmp_path):
    workdir = tmp_path / "run"
    assert train.main(["digits_mdeq", "--workdir", str(workdir), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and field in error and message in error
    assert not workdir.exists()


def test_strings_become_objects_with_their_own_defaults():
    assert SolverConfig(kind="picard").build() == jdeq.Picard()
    assert SolverConfig(kind="anderson", depth=3).build() == jdeq.Anderson(depth=3)
    restarted = SolverConfig(kind="restarted_anderson", depth=4)
    assert restarted.build() == jdeq.RestartedAnderson(depth=4)
    assert GradientConfig(kind="phantom", steps=2).build() == jdeq.Phantom(steps=2)
    assert GradientConfig(max_steps=9).build() == jdeq.Implicit(max_steps=9)
    assert SplittingConfig().build() is None
    assert SplittingConfig(kind="forward_backward", step=0.5).build() == ForwardBackward(step=0.5)
    schedule = RegularizerConfig(gamma=2.0, probability=0.5).build(start=10, seed=0)
    assert schedule.weight_at(10) == 2.0 and not any(schedule.active(s) for s in range(10))
    ends = RegularizerConfig(gamma=2.0, stop=12).build(start=10, seed=0)
    assert [ends.active(s) for s in range(9, 14)] == [False, True, True, False, False]


def test_the_two_digits_runs_differ_in_the_penalty_only():
    ours, twin = (load_run(name) for name in ("digits_mdeq", "digits_mdeq_noreg"))
    assert twin.regularizer.gamma == 0.0 < ours.regularizer.gamma
    assert dataclasses.replace(twin, regularizer=ours.regularizer) == ours


@pytest.mark.parametrize("name", run_names())
def test_every_run_builds_and_survives_json(name, tmp_path):
    config = load_run(name)
    (tmp_path / "config.json").write_text(config.to_json())
    assert read_config(tmp_path / "config.json") == config
    if not (hasattr(config.data, "data_dir") or hasattr(config.data, "directory")):
        # data that are here; for the others see test_published.py
        assert build(config).total_steps > 0


def test_pretraining_is_the_same_model_unrolled():
    run = build(load_run("digits_mdeq"))
    assert run.pretrain_model.gradient == jdeq.Unrolled()
    assert run.pretrain_model.max_steps == run.config.pretrain.evaluations
    assert run.pretrain_model.config is run.model.config


def test_differences_name_the_fields():
    one = dataclasses.asdict(parsed())
    two = dataclasses.asdict(parsed("--solver.depth", "9", "--seed", "1"))
    depth = one["solver"]["depth"]
    assert differences(one, two) == [
        "seed: 0 here, 1 in the workdir",
        f"solver.depth: {depth} here, 9 in the workdir",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ('{"seed": ', "cannot be read as a configuration"),
        ('{"seed": 1}', "do not fit ExperimentConfig"),
    ],
)
def test_evaluate_needs_a_readable_run(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert evaluate.main(["--workdir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", run_names())
def test_config_files_say_where_they_come_from(name):
    text = importlib.import_module(f"experiments.configs.{name}").__doc__
    for word in ("Source:", "Hardware:", "Time:", "Result:"):
        assert word in text


def test_config_is_json_with_every_field():
    values = json.loads(load_run("digits_mdeq").to_json())
    assert {"model", "solver", "gradient", "optimizer", "regularizer", "loop"} <= set(values)


def test_config_error_is_a_value_error():
    with pytest.raises(ConfigError, match="got 0"):
        build(parsed("--data.batch-size", "0"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits_mondeq", ["--splitting.step", "-1.0"], "splitting: jdeq.layers.PeacemanRachford"),
        ("digits_mondeq", ["--model.channels", "4", "4"], "splitting must be ForwardBackward"),
        ("digits_mondeq", ["--model.pool", "3"], "the height of images must be divisible by 3"),
        ("digits_deqvit", ["--model.image-side", "4"], "images must have the sides 4"),
        (
            "digits_resnet",
            ["--solver.depth", "2"],
            "solver must be left as it is for a ResNetConfig",
        ),
        ("scenes_mdeq_seg", ["--model.downsamples", "5"], "divisible by 128"),
        ("scenes_mdeq_seg", ["--model.num-classes", "10"], "model.num_classes must be 11"),
        ("scenes_mdeq_seg", ["--data.batch-size", "0"], "batch_size"),
    ],
)
def test_what_an_image_model_cannot_do_is_one_error(name, options, message, capsys, tmp_path):
    workdir = tmp_path / "run"
    assert train.main([name, "--workdir", str(workdir), *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: ") and message in error
    assert not workdir.exists()


def test_labels_of_pixels_and_models_go_together():
    images, scenes = load_run("digits_mdeq"), load_run("scenes_mdeq_seg")
    for config in (
        dataclasses.replace(images, data=scenes.data),
        dataclasses.replace(scenes, data=images.data),
    ):
        with pytest.raises(ConfigError, match="data must fit a MDEQ.*Config; they have a label"):
            build(config)
