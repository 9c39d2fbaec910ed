"""The solves of a trained cell: test examples at tolerances, each solver step by step, the
spectrum.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

import jdeq
from experiments import stopping
from experiments.build import Run, eval_step
from jdeq import tree
from jdeq.diagnostics import Eigenvalues, leading_eigenvalues
from jdeq.training import evaluate_samples
from jdeq.training.equilibrium import solves_of
from jdeq.types import Solver, Status

EVALUATIONS = 100  # as far as the curves of the solvers go
TIGHT = 1e-5  # the tolerance at which the spectrum is taken
TIGHT_STEPS = 100
NEWTON_STEPS = 8
REPEATS = 3  # of which the median is the time
SPECTRA = 4  # samples whose eigenvalues are shown


class Samples(NamedTuple):
    """The test examples (positions, where the model solves causally), each solved to a tolerance
    in at most `stopping.TOLERANCE_STEPS` evaluations.
    """

    nfe: Int[np.ndarray, " samples"]
    residual: Float[np.ndarray, " samples"]
    status: Int[np.ndarray, " samples"]

    @property
    def converged(self) -> float:
        """The share that reached the tolerance."""
        return float(np.mean(self.status == Status.CONVERGED))


def samples_at(run: Run, variables: dict[str, Any], rtol: float) -> Samples:
    """The test examples that are held in memory, solved to ``rtol`` by the run's solver."""
    model, task = run.model, run.task
    step = eval_step(model.clone(**stopping.stop_options(model, {"rtol": rtol})), task)
    out = evaluate_samples(step, variables, task.test, batch_size=task.test_batch_size)
    found = out.nfe, out.residual, out.status
    if out.nfe.shape == out.counted.shape:
        found = (a[out.counted] for a in found)
    return Samples(*(np.asarray(a).ravel() for a in found))


class Cell(NamedTuple):
    """The problem that a model poses for some inputs; of several the first."""

    f: Callable[[Any, Any, Any], Any]  # jitted
    params: Any
    z0: Any
    x: Any
    causal: bool
    kind: type  # of the module that f applies
    solves: int  # how many the model has


def cell_of(model: Any, variables: dict[str, Any], inputs: np.ndarray) -> Cell:
    """The cell of ``model`` with what is injected for ``inputs``."""
    found = []

    @jax.jit
    def pose(variables):
        found[:] = solves_of(model, variables, inputs)
        problem = found[0].problem
        return problem.params, problem.z0, problem.x

    params, z0, x = pose(variables)
    deq, problem = found[0]
    return Cell(jax.jit(problem.f), params, z0, x, deq.causal, type(deq.cell), len(found))


class Curve(NamedTuple):
    """How a solver converges without a stop.

    Attributes:
      trace: relative residual of the latest state that a sample has after so many evaluations of f
        (row 0: one), NaN before the first and where it is not finite.
      evaluations: mean of a step after the first.
      step_seconds: of a step of all samples together on this machine, the first included.
      evaluation_seconds: that time over the mean evaluations of all steps.
    """

    trace: Float[np.ndarray, "evaluations samples"]
    evaluations: float
    step_seconds: float
    evaluation_seconds: float


def solvers_of(run_solver: Solver, beta: float | None) -> dict[str, Solver]:
    """What is compared, by name: the run's own solver, and the others as they are by default;
    Reversible with ``beta``, or not if there is none.
    """
    others: list[Solver] = [
        jdeq.Picard(), jdeq.Anderson(), jdeq.Broyden(), jdeq.NewtonKrylov()
    ]  # fmt: skip
    if beta is not None:
        others.append(jdeq.Reversible(beta=beta))
    name = type(run_solver).__name__
    chosen = {f"{name} (this run)": run_solver}
    return chosen | {type(s).__name__: s for s in others if type(s).__name__ != name}


def curve(cell: Cell, solver: Solver, *, evaluations: int = EVALUATIONS) -> Curve:
    """The residuals of ``solver`` on the samples of ``cell`` from z0, and the time it takes.

    Where the cell is causal, positions are samples if the solver can step them for themselves.
    """
    ndim = 1 + (cell.causal and solver.causal)
    per_step = stopping.evaluations_per_step(solver)
    steps = NEWTON_STEPS if per_step is None else 1 + (evaluations - 1) // per_step

    def walk(params, z0, x):
        def f(z):
            return tree.cast_like(cell.f(params, z, x), z)

        def look(state):
            size = tree.norm(state.fz, ndim)
            residual = tree.norm(tree.subtract(state.fz, state.z), ndim)
            cost = jnp.broadcast_to(jnp.asarray(solver.cost(state), jnp.int32), size.shape)
            return tree.ratio(residual, size), cost

        def step(state, _):
            state = solver.step(f, state, ndim=ndim)
            return state, look(state)

        state = solver.init(f, z0, ndim=ndim)
        first = look(state)
        _, rest = lax.scan(step, state, None, length=steps - 1)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    args = cell.params, cell.z0, cell.x
    compiled = jax.jit(walk).lower(*args).compile()
    residual, cost = (np.asarray(a).reshape(steps, -1) for a in compiled(*args))
    seconds = timed(lambda: compiled(*args))
    mean = float(cost[1:].mean()) if steps > 1 else float(cost.mean())
    taken = float(cost.sum(axis=0).mean())
    trace = by_evaluation(residual, cost, evaluations)
    return Curve(trace, mean, seconds / steps, seconds / taken)


def by_evaluation(
    residual: Float[np.ndarray, "steps samples"],
    cost: Int[np.ndarray, "steps samples"],
    evaluations: int,
) -> Float[np.ndarray, "evaluations samples"]:
    """Residuals by step, of steps that cost so much, as `Curve` has them."""
    spent = np.cumsum(cost, axis=0)
    counts = np.arange(1, evaluations + 1)
    # The number of steps that were over after so many evaluations.
    over = (spent[None] <= counts[:, None, None]).sum(axis=1)
    known = np.take_along_axis(residual, np.maximum(over - 1, 0), axis=0)
    return np.where((over > 0) & np.isfinite(known), known, np.nan)


def reached(trace: Float[np.ndarray, "evaluations samples"], rtol: float) -> np.ndarray:
    """The evaluations after which each sample was first within ``rtol``; infinity: never."""
    within = trace <= rtol
    return np.where(within.any(axis=0), 1 + within.argmax(axis=0), np.inf)


def latest(trace: Float[np.ndarray, "evaluations samples"]) -> Float[np.ndarray, " samples"]:
    """The last residual of each sample that is known; infinity where it is not finite."""
    return np.where(np.isfinite(trace[-1]), trace[-1], np.inf)


def timed(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds of a call, its results awaited."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


class Spectrum(NamedTuple):
    """The Jacobian of the cell at the solutions.

    Attributes:
      residual: of the states that it was taken at.
      radius: spectral radius, one a sample (of text: a window).
      eigenvalues: the leading ones of a few samples.
      size: entries of a sample's state.
      beta, rate: what `jdeq.propose_beta` says of these samples; None where it cannot.
    """

    residual: Float[np.ndarray, " states"]
    radius: Float[np.ndarray, " samples"]
    eigenvalues: Eigenvalues
    size: int
    beta: float | None
    rate: float | None


def spectrum(cell: Cell, solver: Solver) -> Spectrum:
    """At the states that ``solver`` finds to `TIGHT`, or in `TIGHT_STEPS` steps."""
    solution = jdeq.fixed_point(
        cell.f, cell.params, cell.z0, cell.x, solver=solver, rtol=TIGHT, max_steps=TIGHT_STEPS,
        causal=cell.causal,
    )  # fmt: skip
    z, key = solution.z, jax.random.key(0)
    radius = jax.jit(jdeq.spectral_radius, static_argnums=0)(cell.f, cell.params, z, cell.x, key)
    few = _first(cell, z, SPECTRA)
    eigenvalues = leading_eigenvalues(*few, key)
    beta, rate = None, None
    if np.all(np.isfinite(eigenvalues.values[:, 0])):  # there is one wherever J is finite
        beta, rate = jdeq.propose_beta(*few, key)
    return Spectrum(
        residual=np.asarray(solution.stats.residual).ravel(),
        radius=np.asarray(radius),
        eigenvalues=eigenvalues,
        size=tree.sample_size(z, 1),
        beta=beta,
        rate=rate,
    )


def _first(cell: Cell, z: Any, count: int) -> tuple[Any, Any, Any, Any]:
    """The map of the first samples, and their z: what is injected need not have a batch axis, so
    the others are held where they are.
    """
    rest = jax.tree.map(lambda a: a[count:], z)

    def f(params, few, x):
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), few, rest)
        return jax.tree.map(lambda a: a[:count], cell.f(params, whole, x))

    return jax.jit(f), cell.params, jax.tree.map(lambda a: a[:count], z), cell.x


def quantiles(values: Sequence[float] | np.ndarray) -> Mapping[str, float]:
    """Mean, and the least value, the largest, and some between."""
    values = np.asarray(values, np.float64)
    points = {"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "max": 100}
    found = np.percentile(values, list(points.values()), method="inverted_cdf")
    return {"mean": float(values.mean()), **dict(zip(points, found.tolist(), strict=True))}
