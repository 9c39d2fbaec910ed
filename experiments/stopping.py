"""Where solves are stopped when a run is measured: after a budget, or at a tolerance."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

import jdeq
from experiments.build import eval_step
from experiments.task import Task
from jdeq.training.equilibrium import solves_of

TOLERANCE_STEPS = 50  # the budget of an evaluation to a tolerance
_NEVER = 1e-7  # a tolerance that float32 does not reach within a few evaluations


def evaluate_at(
    model: Any,
    variables: dict[str, Any],
    task: Task,
    *,
    budgets: Iterable[int],
    rtols: Iterable[float],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Quality on the test examples and solver statistics, at hard stops and at tolerances.

    A hard stop takes the state after exactly ``budget`` evaluations of the cell (of each, where a
    model has several), as a network of that depth would; a tolerance solves each sample until it
    holds. A step of Reversible takes two evaluations, so that only even budgets have a row; one of
    NewtonKrylov takes as many as it needs, so that there are no hard stops. An explicit model has
    one row. ``say`` is told what is measured next.
    """

    def measure(stop: str, **options):
        say(f"test examples, {stop}")
        return task.evaluate(eval_step(model.clone(**options), task), variables)

    if not hasattr(model, "solver"):
        return [{"stop": "explicit", **measure("explicit")}]
    per_step = evaluations_per_step(model.solver)
    solves = _solves(model, variables, task)
    rows = []
    for budget in budgets:
        if per_step is None or budget % per_step:
            continue
        stop = {"stop": f"after {budget}", "budget": budget}
        row = measure(stop["stop"], **stop_options(model, stop))
        # Each solve counts one more, which measures the residual of the state it returns.
        row["nfe_forward"] -= solves
        rows.append(stop | row)
    for rtol in rtols:
        stop = {"stop": f"rtol {rtol:g}", "rtol": rtol}
        rows.append(stop | measure(stop["stop"], **stop_options(model, stop)))
    return rows


def _solves(model: Any, variables: dict[str, Any], task: Task) -> int:
    """How many a forward pass has."""
    found = []

    def count(variables, inputs):
        found.append(len(solves_of(model, variables, inputs)))

    jax.eval_shape(count, variables, task.test_inputs(1))
    return found[0]


def stop_options(model: Any, stop: dict[str, Any]) -> dict[str, Any]:
    """What a model solves with in a row of `evaluate_at`: at its "budget" or its "rtol"."""
    per_step = evaluations_per_step(model.solver) or 1
    if "budget" in stop:
        steps = stop["budget"] // per_step
        return {"gradient": jdeq.Unrolled(), "max_steps": steps, "rtol": _NEVER}
    return {"rtol": stop["rtol"], "max_steps": TOLERANCE_STEPS // per_step}


def evaluations_per_step(solver: Any) -> int | None:
    """Evaluations of the cell in a step of a solver; None where that varies."""
    if isinstance(solver, jdeq.NewtonKrylov):
        return None
    return 2 if isinstance(solver, jdeq.Reversible) else 1
