"""The synthetic study: recipe, measures on a known map, and the whole in the slow suite."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import compare, synthetic, train, workdir
from experiments.build import build
from experiments.config import ConfigError
from experiments.config_files import load_run
from experiments.data import DigitsData
from experiments.synthetic import SLICES, STATES, Arguments
from experiments.tables import read_rows
from jdeq.training import read_metrics

pytestmark = pytest.mark.xdist_group("synthetic")  # one process has the cache

BASE = load_run("synthetic")
SMALL = dataclasses.replace(
    BASE,
    data=dataclasses.replace(BASE.data, train_pairs=256, test_pairs=64),
    loop=dataclasses.replace(
        BASE.loop,
        steps=8,
        log_every=4,
        save_every=4,
        test_every=4,
        spectrum_every=8,
        spectrum_examples=64,
        budgets=(2,),
        rtols=(1e-3,),
    ),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The runs of a study are the same programs."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_recipe_of_the_paper():
    argv = ["synthetic", "--workdir", "w", "--regularizer.gamma", "2"]
    config = train.parse(argv)[1].config
    assert (config.regularizer.gamma, config.regularizer.probability) == (2.0, 0.4)
    assert (config.solver.rtol, config.solver.max_steps) == (1e-3, 6)
    assert (config.gradient.rtol, config.gradient.max_steps) == (1e-4, 6)
    run = build(config)
    assert run.total_steps == 50 * run.task.batches.batches_per_epoch
    assert run.task.batches.batch_size == 64 and run.task.test_examples == 1000
    assert run.learning_rate(0) == pytest.approx(1e-3) and run.learning_rate(3199) < 1e-8
    assert sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params)) == 200


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("synthetic", {"data": DigitsData()}, "data must fit a ScalarDEQConfig; their labels are"),
        ("digits_mdeq", {"data": BASE.data}, "data must fit a MDEQConfig; their labels are num"),
    ],
)
def test_classes_and_numbers_are_told_apart(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(dataclasses.replace(load_run(name), **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (1, 1)}, r"seeds must be one or more different values; got \(1, 1\)"),
        ({"gammas": ()}, "gammas must be one or more"),
        ({"drawn": (3.0,)}, r"drawn must be one or more of the gammas, .* got \(3.0,\)"),
    ],
)
def test_arguments_that_cannot_be(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        synthetic.run(Arguments(runs=tmp_path / "runs", **options), base=BASE)
    assert not (tmp_path / "runs").exists()


def test_the_curves_of_a_known_map(tmp_path):
    """f(z; x) = -z / 2 + x, of two units, each way: z* = x / 1.5, and halving errors."""
    run = build(dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, hidden=2)))
    cell = {
        "up": {"kernel": [[-0.5, 0.5]]},
        "inject": {"kernel": [[1.0, -1.0]], "bias": [0.0, 0.0]},
        "down": {"kernel": [[1.0], [-1.0]]},
    }
    names = run.abstract_state().params["deq"]
    params = {"deq": dict.fromkeys(names, jax.tree.map(np.float32, cell, is_leaf=is_list))}
    curves = synthetic.curves_of(run, {"params": params})
    np.testing.assert_allclose(curves.equilibrium, curves.x / 1.5, atol=1e-4)
    np.testing.assert_allclose(curves.fz, curves.x - STATES[:, None] / 2, atol=1e-6)
    np.testing.assert_allclose(curves.slices[0], SLICES[0] - STATES / 2, atol=1e-6)
    states, want = curves.iterates[0], [0.0]
    for _ in states[1:]:
        want.append(SLICES[0] - want[-1] / 2)
    np.testing.assert_allclose(states, want, atol=1e-6)
    assert abs(want[-1] - want[-2]) <= 1e-3 * abs(want[-1])
    assert abs(want[-2] - want[-3]) > 1e-3 * abs(want[-2])

    synthetic.write_curves(tmp_path, {0.0: curves, 2.0: curves}, 1.5)
    surface = read_rows(tmp_path / "surface.csv")
    assert len(surface) == 2 * curves.fz.size
    row = surface[45]
    assert row["fz"] == pytest.approx(row["x"] - row["z"] / 2, abs=1e-4)
    assert len(read_rows(tmp_path / "cobwebs.csv")) == 2 * sum(map(len, curves.iterates))
    figure = synthetic.draw({0.0: curves, 2.0: curves})
    assert len(figure.axes) == 6 and figure.axes[1].get_title() == "gamma 0, slice x = -1"


def is_list(node):
    return isinstance(node, list)


def test_the_table_has_means_over_seeds():
    names = ("rmse", "nfe_picard", "nfe_anderson", "spectral_radius_mean", "spectral_radius_max")
    rows = [
        {"gamma": gamma, "seed": seed, **dict.fromkeys(names, 2.0 * seed + gamma)}
        for gamma in (0.0, 4.0)
        for seed in (0, 1)
    ]
    heads, _, none, four = synthetic.table(rows).splitlines()
    assert "nfe to 0.001, plain iteration" in heads and "nfe to 0.001, Anderson" in heads
    assert none.startswith("| 0 | 0, 1 | 0.000, 2.000 | 0.00, 2.00 |")  # far apart
    assert four.startswith("| 4 | 0, 1 | 5.000 +- 1.414 | 5.00 +- 1.41 |")


@pytest.mark.slow
def test_a_small_study_trains_what_is_missing_and_measures_it(compiled, tmp_path, capsys):
    arguments = Arguments(
        runs=tmp_path / "runs", out=tmp_path / "out", gammas=(0.0, 2.0), drawn=(2.0,), seeds=(0, 3)
    )
    assert synthetic.run(arguments, base=SMALL) == 0
    directories = [arguments.runs / f"gamma{g}_seed{s}" for g in (0, 2) for s in (0, 3)]
    names = {"table.md", "runs.csv", "surface.csv", "equilibrium.csv", "slices.csv", "cobwebs.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"figure5.png"}
    rows = read_rows(tmp_path / "out" / "runs.csv")
    assert [(row["gamma"], row["seed"]) for row in rows] == [(0, 0), (0, 3), (2, 0), (2, 3)]
    for row, directory in zip(rows, directories, strict=True):
        report = workdir.read_report(directory)
        (at_tolerance,) = [entry for entry in report["test"] if "rtol" in entry]
        assert row["rmse"] == pytest.approx(at_tolerance["rmse"], rel=1e-5)
        assert at_tolerance["rmse"] == pytest.approx(at_tolerance["loss_nats"] ** 0.5)
        assert row["nfe_anderson"] == pytest.approx(at_tolerance["nfe_forward"], rel=1e-5)
        penalised = {"penalty" in r for r in read_metrics(directory / "metrics.jsonl")}
        assert penalised == {False} or row["gamma"] == 2
    before = [(directory / "metrics.jsonl").stat().st_mtime_ns for directory in directories]
    assert synthetic.run(arguments, base=SMALL) == 0
    assert before == [(d / "metrics.jsonl").stat().st_mtime_ns for d in directories]
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        synthetic.run(arguments, base=BASE)
    capsys.readouterr()
    assert compare.run(compare.Arguments(workdirs=tuple(directories))) == 0
    assert "root of the mean squared error" in capsys.readouterr().out


@pytest.mark.slow
def test_all_weights_fit_and_the_penalty_halves_the_evaluations(compiled, tmp_path):
    """Section 5.1 of Bai, Koltun and Kolter (2021), with two of the five seeds."""
    arguments = Arguments(runs=tmp_path, seeds=(0, 1))
    assert synthetic.run(arguments, base=BASE) == 0
    rows = read_rows(tmp_path / "runs.csv")
    assert len(rows) == 8 and all(row["converged_picard"] == 1.0 for row in rows)
    assert max(row["rmse"] for row in rows) <= 0.1

    def mean(name, gamma):
        return np.mean([row[name] for row in rows if row["gamma"] == gamma])

    for gamma in (2, 4):
        assert mean("nfe_picard", gamma) <= 0.5 * mean("nfe_picard", 0)
    radii = [mean("spectral_radius_mean", gamma) for gamma in (0, 1, 2, 4)]
    assert radii == sorted(radii, reverse=True)
    assert (tmp_path / "figure5.png").stat().st_size < 300_000
