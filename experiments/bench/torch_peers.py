"""torchdeq, where torch and it are installed: the same arrays, in torch, by calls of Python.

Not in the extra ``bench``, since torch is large: ``pip install torchdeq``. Its maps have to be
written in torch, so it solves the problems of `tanh_map`: A, B and the stiff ones. Torch takes the
threads it takes by itself.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.bench.entries import HAND_WRITTEN
from experiments.bench.harness import Case
from experiments.bench.problems import REACHED, RTOL, Problem, tanh_map

NAME = "torchdeq"
SOLVERS: dict[str, tuple[str, str, dict[str, float]]] = {
    f"{NAME} Picard": ("fixed_point_iter", "fixed_point_iter", {}),
    f"{NAME} Anderson": ("anderson", "anderson", {}),
    f"{NAME} Broyden": ("broyden", "broyden", {}),
    f"{NAME} Anderson ridge 1e-10, adjoint Broyden": ("anderson", "broyden", {"lam": 1e-10}),
}
"""Forward solver, adjoint solver, options of the forward one. The ridge of its Anderson is
absolute, and that of an adjoint solve cannot be set."""
BROYDEN_STEPS = 1000
"""Its budget at most: it keeps all its steps, and each costs as much as there are."""


def installed() -> bool:
    """Whether it can be imported."""
    try:
        importlib.import_module(NAME)
    except ModuleNotFoundError:
        return False
    return True


def calls(problem: Problem, name: str, rtol: float, counts: dict[str, int]) -> dict[str, Callable]:
    """Kind -> a function of the torch arrays ``(params, z0, x)`` that gives detached results, z
    alone or ``(z, gradient)``; every evaluation of f is added to ``counts``.
    """
    torch, torchdeq = (importlib.import_module(n) for n in ("torch", NAME))
    forward_solver, adjoint, options = SOLVERS[name]
    deq = torchdeq.get_deq(
        f_solver=forward_solver, b_solver=adjoint, ift=True, f_tol=rtol, b_tol=rtol,
        f_max_iter=budget(problem, forward_solver), b_max_iter=budget(problem, adjoint),
        f_stop_mode="rel", b_stop_mode="rel",
    )  # fmt: skip

    def solve(params, z0, x):
        entering = x @ params["u"].T + params["b"]  # once, as XLA has it for the others

        def f(z):
            counts["evaluations"] += 1
            return torch.tanh(z @ params["w"].T + entering)

        return deq(f, z0, solver_kwargs=dict(options))[0][-1]

    def forward(params, z0, x):
        with torch.no_grad():
            return solve(params, z0, x)

    def value_and_grad(params, z0, x):
        z = solve(params, z0, x)
        loss = (z**problem.power).mean()
        names = sorted(params)
        gradient = torch.autograd.grad(loss, [params[name] for name in names])
        return z.detach(), dict(zip(names, gradient, strict=True))

    return {"forward": forward, "value_and_grad": value_and_grad}


def budget(problem: Problem, solver: str) -> int:
    """Steps that a solve may take."""
    return min(problem.max_steps, BROYDEN_STEPS) if solver == "broyden" else problem.max_steps


def torch_cases(problem: Problem) -> list[Case]:
    """Forward and value_and_grad by every solver, tightened as the other peers are; none for a map
    that is not written in torch.
    """
    if problem.f is not tanh_map:
        return []
    torch = importlib.import_module("torch")
    params, z0, x = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), problem.args)
    params = {name: value.requires_grad_() for name, value in params.items()}
    cases = []
    for name in SOLVERS:
        rtol = tightened(problem, name, (params, z0, x))
        spent = None if rtol else budget(problem, SOLVERS[name][0])
        for kind in ("forward", "value_and_grad"):
            counts = {"evaluations": 0}
            call = calls(problem, name, rtol or RTOL, counts)[kind]
            cases.append(
                Case(
                    group=f"{problem.name}, {kind}",
                    name=name,
                    make=partial(_given, call, spent=spent),
                    f=None,
                    args=(params, z0, x),
                    reference=HAND_WRITTEN,
                    check=partial(check, problem, kind, counts),
                    jitted=False,
                )
            )
    return cases


def _given(call: Callable, _f: Any, *, spent: int | None) -> Callable:
    if spent:  # not timed: it takes seconds, and the answer is not the one that is asked
        raise RuntimeError(f"does not reach the residual in {spent} steps, its budget here")
    return call


def tightened(problem: Problem, name: str, args: tuple) -> float | None:
    """The loosest of 10 tolerances that brings the worst sample to RTOL, and RTOL if none does;
    None where the budget ends before.
    """
    for power in range(10):
        counts = {"evaluations": 0}
        rtol = RTOL * 0.75**power
        z = calls(problem, name, rtol, counts)["forward"](*args)
        if problem.known.residual(z.numpy())["residual_worst_sample"] <= REACHED:
            return rtol
        if counts["evaluations"] >= budget(problem, SOLVERS[name][0]):
            return None
    return RTOL


def check(problem: Problem, kind: str, counts: dict[str, int], output: Any) -> dict[str, float]:
    """The facts of the first call."""
    z, gradient = (output, None) if kind == "forward" else output
    facts = {**counts, **problem.known.residual(z)}
    if gradient is not None:
        facts["gradient_error"] = problem.known.gradient_error(gradient)
    return facts
