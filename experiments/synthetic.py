"""The synthetic study of the Jacobian penalty: ``python -m experiments.synthetic --runs DIR``.

Trains the runs of experiments/configs/synthetic.py that DIR lacks, one a weight of the penalty and
seed, then writes table.md, runs.csv and figure 5 with a CSV of each of its curves.

Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
section 5.1 and figure 5.
"""

import dataclasses
import functools
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

import jdeq
from experiments import train, trained, workdir
from experiments.build import Run, eval_step
from experiments.cli import guarded
from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import load_run
from experiments.tables import markdown, spread, write_rows
from jdeq import plots
from jdeq.data.synthetic import load_synthetic
from jdeq.training import equilibrium_of, read_metrics

RTOL = 1e-3
STEPS = 500  # of plain iteration, which a slope of 0.98 needs
SLICES = (-1.0, 0.75)
"""The inputs of the cobwebs; the paper's is -1."""
STATES = np.linspace(-2.5, 2.5, 41)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    runs: pathlib.Path
    """Directory of the runs, each in a workdir of experiments.train."""
    out: pathlib.Path | None = None
    """Where table, curves and picture go; None: beside the runs."""
    gammas: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """Weights of the penalty."""
    drawn: tuple[float, ...] | None = None
    """Those of them in the picture, with the first seed; None: 0, 2 and 4 where they are among
    them, else all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


class Curves(NamedTuple):
    """The map of a trained run in figures; x, z* and f on a grid, and its slices."""

    x: np.ndarray  # [inputs]
    equilibrium: np.ndarray  # [inputs], NaN where there is none
    fz: np.ndarray  # [states, inputs]
    slices: np.ndarray  # [SLICES, states]
    iterates: list[np.ndarray]  # for each of SLICES, from 0 to the tolerance


def run(arguments: Arguments, *, base: ExperimentConfig) -> int:
    """Train what is missing, measure, write; ``base`` is the run that gamma and seed vary."""
    if arguments.drawn is None:
        drawn = tuple(g for g in (0.0, 2.0, 4.0) if g in arguments.gammas) or arguments.gammas
        arguments = dataclasses.replace(arguments, drawn=drawn)
    assert arguments.drawn is not None
    _check(arguments)
    console = Console(highlight=False)
    out = arguments.out or arguments.runs
    rows, curves = [], {}
    for gamma in arguments.gammas:
        penalty = dataclasses.replace(base.regularizer, gamma=gamma)
        for seed in arguments.seeds:
            config = dataclasses.replace(base, regularizer=penalty, seed=seed)
            directory = arguments.runs / f"gamma{gamma:g}_seed{seed}"
            if workdir.read_report(directory) is None:
                console.rule(str(directory))
                train.train(config, directory, again=shlex.join(sys.orig_argv))
            else:
                workdir.claim(directory, config)  # refuses a run of another configuration
            report = workdir.read_report(directory)
            if report is None:
                return 0  # told to stop, which the training has said
            loaded, restored = trained.load(directory, console)
            variables = restored.state.averaged_variables
            rows.append(
                {"gamma": gamma, "seed": seed} | measure(loaded, variables, report, directory)
            )
            if seed == arguments.seeds[0] and gamma in arguments.drawn:
                curves[gamma] = curves_of(loaded, variables)
    out.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    workdir.write_text(out / "table.md", text)
    write_rows(out / "runs.csv", rows, digits=6)
    half_width = base.data.half_width  # pyright: ignore[reportAttributeAccessIssue]
    write_curves(out, curves, half_width)
    draw(curves).savefig(out / "figure5.png")
    console.print(text, markup=False, soft_wrap=True)
    return 0


def measure(
    run: Run, variables: dict[str, Any], report: dict[str, Any], directory: pathlib.Path
) -> dict[str, float]:
    """The numbers of a run on its validation pairs: errors and evaluations to the tolerance, with
    the training solver as its report has them and by plain iteration; ``|f'(z*)|``.
    """
    (row,) = [row for row in report["test"] if row.get("rtol") == RTOL]
    plain = run.model.clone(solver=jdeq.Picard(), rtol=RTOL, max_steps=STEPS)
    means = run.task.evaluate(eval_step(plain, run.task), variables)
    records = read_metrics(directory / workdir.METRICS_FILE)
    spectrum = [r for r in records if r["kind"] == "spectrum"][-1]
    return {
        "rmse": row["rmse"],
        "nfe_picard": means["nfe_forward"],
        "converged_picard": means["converged"],
        f"nfe_{run.config.solver.kind}": row["nfe_forward"],
        "spectral_radius_mean": spectrum["spectral_radius_mean"],
        "spectral_radius_max": spectrum["spectral_radius_max"],
    }


def curves_of(run: Run, variables: dict[str, Any]) -> Curves:
    """What is drawn of a run."""
    half_width = run.config.data.half_width  # pyright: ignore[reportAttributeAccessIssue]
    x = np.linspace(-half_width, half_width, 41)
    slices = np.array(SLICES)
    f, params, *_ = equilibrium_of(run.model, variables, run.task.test_inputs(1))

    @jax.jit
    def evaluate(z, x):
        return f(params, z.reshape(-1, 1), x.reshape(-1, 1)).reshape(z.shape)

    solution = jdeq.fixed_point(
        f,
        params,
        np.zeros((len(x), 1), np.float32),
        x[:, None].astype(np.float32),
        rtol=1e-5,
        max_steps=STEPS,
        solver=jdeq.Picard(),
    )
    solved = np.asarray(solution.stats.status) == jdeq.Status.CONVERGED

    def on_grid(x: np.ndarray) -> np.ndarray:
        z, inputs = np.meshgrid(STATES, x, indexing="ij")
        return np.asarray(evaluate(z.astype(np.float32), inputs.astype(np.float32)))

    def iterates(at: float) -> np.ndarray:
        states = [0.0]
        for _ in range(STEPS):
            states.append(float(evaluate(np.float32(states[-1]), np.float32(at))))
            if abs(states[-1] - states[-2]) <= RTOL * abs(states[-1]):
                break
        return np.array(states)

    return Curves(
        x=x,
        equilibrium=np.where(solved, np.asarray(solution.z)[:, 0], np.nan),
        fz=on_grid(x),
        slices=on_grid(slices).T,
        iterates=[iterates(at) for at in SLICES],
    )


def draw(curves: dict[float, Curves]) -> Figure:
    """Figure 5: a column a gamma; the surface, then the cobwebs on its slices."""
    figure = Figure(figsize=(4.2 * len(curves), 11), dpi=80, layout="constrained")
    for column, (gamma, of) in enumerate(curves.items(), 1):
        place = functools.partial(figure.add_subplot, 1 + len(SLICES), len(curves))
        ax: Any = place(column, projection="3d")
        for at, fz in zip(SLICES, of.slices, strict=True):
            ax.plot(
                np.full_like(STATES, at), STATES, fz, zorder=9, lw=1.2, label=f"slice x = {at:g}"
            )
        plots.surface(STATES, of.x, of.fz, of.equilibrium, ax=ax).view_init(elev=22, azim=-60)
        ax.set_title(f"gamma {gamma:g}")
        for row, (at, fz, states) in enumerate(zip(SLICES, of.slices, of.iterates, strict=True), 1):
            ax = place(row * len(curves) + column)
            plots.cobweb(STATES, fz, states, ax=ax, label=f"f(z; x = {at:g})")
            ax.set_title(f"gamma {gamma:g}, slice x = {at:g}", fontsize="medium")
    return figure


def table(rows: Sequence[dict[str, float]]) -> str:
    """A row a gamma, its seeds as in `spread`."""
    heads = {
        "rmse": ("validation RMSE, y standardised", 3),
        "nfe_picard": (f"nfe to {RTOL:g}, plain iteration", 2),
        **{
            name: (f"nfe to {RTOL:g}, {name.removeprefix('nfe_').capitalize()}", 2)
            for name in rows[0]
            if name.startswith("nfe_") and name != "nfe_picard"
        },
        "spectral_radius_mean": ("spectral radius, mean over x", 3),
        "spectral_radius_max": ("largest", 3),
    }
    table = []
    for gamma in dict.fromkeys(row["gamma"] for row in rows):
        own = [row for row in rows if row["gamma"] == gamma]
        cells = [f"{gamma:g}", ", ".join(f"{row['seed']:g}" for row in own)]
        cells += [spread([row[name] for row in own], d) for name, (_, d) in heads.items()]
        table.append(cells)
    return markdown(["gamma", "seeds", *(head for head, _ in heads.values())], table) + "\n"


def write_curves(out: pathlib.Path, curves: dict[float, Curves], half_width: float) -> None:
    """A CSV for each kind of curve in the figure."""
    target = load_synthetic(half_width=half_width).standardised_curve
    surface, equilibrium, slices, iterates = [], [], [], []
    for gamma, of in curves.items():
        for x, z_star, column in zip(of.x, of.equilibrium, of.fz.T, strict=True):
            equilibrium.append((gamma, x, z_star, target(x)))
            surface += [(gamma, x, z, fz) for z, fz in zip(STATES, column, strict=True)]
        for at, values, states in zip(SLICES, of.slices, of.iterates, strict=True):
            slices += [(gamma, at, z, fz) for z, fz in zip(STATES, values, strict=True)]
            iterates += [(gamma, at, count, z) for count, z in enumerate(states)]
    files = {
        "surface": (("gamma", "x", "z", "fz"), surface),
        "equilibrium": (("gamma", "x", "z_star", "target"), equilibrium),
        "slices": (("gamma", "x", "z", "fz"), slices),
        "cobwebs": (("gamma", "x", "evaluations", "z"), iterates),
    }
    for name, (heads, values) in files.items():
        rows = [dict(zip(heads, row, strict=True)) for row in values]
        write_rows(out / f"{name}.csv", rows, digits=6)


def _check(arguments: Arguments) -> None:
    for name in ("gammas", "seeds"):
        values = getattr(arguments, name)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} must be one or more different values; got {values}")
    drawn = arguments.drawn
    if not drawn or not set(drawn) <= set(arguments.gammas):
        raise ConfigError(
            f"drawn must be one or more of the gammas, {arguments.gammas}; got {arguments.drawn}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    # The runs are the same programs: gamma and seed are arguments of them.
    jax.config.update("jax_compilation_cache_dir", str(arguments.runs / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return guarded(lambda: run(arguments, base=load_run("synthetic")))


if __name__ == "__main__":
    sys.exit(main())
