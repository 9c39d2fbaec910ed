"""How many floating-point operations a training step takes, told without running it.

XLA's count of a program takes the body of a loop once, however often it runs. The loops of an
equilibrium model are its solves, whose steps report how often they ran, so that what is missing can
be added.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.gradients import Implicit, Neumann, OneStep, Phantom
from jdeq.gradients.implicit import starts_at_zero
from jdeq.solvers import Anderson, Broyden, Picard, RestartedAnderson, Reversible
from jdeq.training.equilibrium import Solve, solves_of
from jdeq.training.step import TrainStep

PyTree = Any
_Count = Callable[[dict[str, Float[Array, ""]]], Float[Array, ""] | float]

_PER_STEP = {
    Picard: 1,
    Anderson: 1,
    RestartedAnderson: 1,
    Broyden: 1,
    Reversible: 2,
}  # evaluations


def count_flops(step: TrainStep, model: nn.Module) -> TrainStep:
    """``step`` with "flops" among its metrics, where that can be told; else as it is.

    The count is ``C + (nfe_forward - c) F + (nfe_backward - c') P``: C of XLA for the whole step,
    c and c' what it has in C of the loops of the solves, F an evaluation of the cell and P a
    product with its transposed Jacobian on the whole batch. Of a loop C has the start and one step:
    2 with solvers of one evaluation a step, 3 with Reversible, and one step more for a budget of
    one. A backward loop that starts at 0 has nothing before it. The rule may be `jdeq.Implicit`, or
    one without a backward loop: OneStep, Phantom, Neumann.
    The solver's own arithmetic in further steps is left out, which is little beside a wide cell;
    nfe are means, so that what a batch computes for samples that are done is left out too. XLA
    counts the program before it is optimised, nothing being compiled: also where kernels of a
    library take over, which it cannot see into.

    Nothing is told where it would be wrong: for other rules and solvers (their loops do not report
    all they do), several DEQs in a model, other loops in it, a step whose devices
    stop for themselves, or a backend that does not count.

    Args:
      step: from `make_train_step`.
      model: what it trains; explicit ones too.
    Cost: one tracing of the model and one of the cell, and one lowering, a variant of the step.
    """
    counts: dict[bool, _Count | None] = {}

    def counted(state, batch, weight, *, penalize):
        if penalize not in counts:
            counts[penalize] = _count(step, model, state, batch, weight, penalize)
        count = counts[penalize]
        state, metrics = step(state, batch, weight, penalize=penalize)
        if count is not None:
            metrics = metrics | {"flops": jnp.asarray(count(metrics), jnp.float32)}
        return state, metrics

    return counted


def _count(step: Any, model, state, batch, weight, penalize) -> _Count | None:
    found: list[Solve] = []

    def parts(variables, inputs):
        found.extend(solves_of(model, variables, inputs, mutable=("memory",)))
        return [(solve.problem.params, solve.problem.z0, solve.problem.x) for solve in found]

    shapes = jax.eval_shape(parts, state.variables, batch.inputs)
    traced = step.trace(state, batch, weight, penalize=penalize)
    whole = _flops(traced.lower())
    loops = _number(traced.jaxpr, ("while", "scan"))
    # XLA counts a part of the batch that devices solve for themselves once, not once a device.
    if whole is None or len(found) > 1 or _number(traced.jaxpr, ("shard_map",)):
        return None
    if not found:
        return None if loops else lambda metrics: whole
    deq, rule = found[0].deq, found[0].deq.gradient
    budgets = [(deq.solver, deq.max_steps, 1)]  # and what is done before the loop
    if isinstance(rule, Implicit):
        solver = rule.adjoint_solver(deq.solver)
        before = int(not starts_at_zero(solver))
        budgets.append((solver, rule.max_steps or deq.max_steps, before))
    elif not isinstance(rule, OneStep | Phantom | Neumann):
        return None
    if loops != len(budgets) or any(type(solver) not in _PER_STEP for solver, *_ in budgets):
        return None
    forward, *backward = (
        before + _PER_STEP[type(solver)] * (2 if max_steps == 1 else 1)
        for solver, max_steps, before in budgets
    )
    evaluation, product = _cell_flops(found[0].problem.f, *shapes[0])

    def count(metrics):
        total = whole + (metrics["nfe_forward"] - forward) * evaluation
        for once in backward:
            total += (metrics["nfe_backward"] - once) * product
        return total

    return count


def _cell_flops(f: Callable, params: PyTree, z: PyTree, x: PyTree) -> tuple[float, float]:
    """Of ``f`` and of ``ct -> J^T ct``, without what linearizes f."""

    def transposed(params, z, x):
        return jax.vjp(lambda z: f(params, z, x), z)[1]

    pull = jax.eval_shape(transposed, params, z, x)  # a pytree of its residuals
    evaluation = jax.jit(f).lower(params, z, x)
    product = jax.jit(lambda pull, ct: pull(ct)).lower(pull, z)
    return _flops(evaluation) or 0.0, _flops(product) or 0.0


def _flops(lowered: Any) -> float | None:
    return (lowered.cost_analysis() or {}).get("flops")


def _number(jaxpr: Any, names: tuple[str, ...]) -> int:
    """How many operations of these names a program has, those within others included."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    # A custom_linear_solve carries its transpose and more, but runs its ``solve``.
    values = [getattr(v, "solve", v) for eqn in jaxpr.eqns for v in eqn.params.values()]
    inner = (
        part
        for value in values
        for part in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    )
    own = sum(equation.primitive.name in names for equation in jaxpr.eqns)
    return own + sum(_number(part, names) for part in inner)
