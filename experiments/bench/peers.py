"""The peers that are installed: jaxopt, optimistix and banax (extra ``bench``)."""

import importlib
from functools import partial
from typing import Any

from experiments.bench.entries import Entry


def jaxopt_entries(jaxopt: Any) -> list[Entry]:
    """jaxopt stops on the absolute residual of the whole batch."""
    linear = jaxopt.linear_solve

    def fixed_point(cls, **options):
        def build(rtol, norm, max_steps):
            def solve(f, params, z0, x):
                solver = cls(
                    lambda z, params, x: f(params, z, x),
                    maxiter=max_steps,
                    tol=rtol * norm,
                    **options,
                )
                z, state = solver.run(z0, params, x)
                return z, state.iter_num

            return solve

        return build

    def broyden(**options):
        def build(rtol, norm, max_steps):
            def solve(f, params, z0, x):
                solver = jaxopt.Broyden(
                    lambda z, params, x: z - f(params, z, x),
                    maxiter=max_steps,
                    tol=rtol * norm,
                    **options,
                )
                z, state = solver.run(z0, params, x)
                return z, state.iter_num

            return solve

        return build

    gmres, bicgstab = (partial(s, tol=1e-5) for s in (linear.solve_gmres, linear.solve_bicgstab))
    looser = partial(linear.solve_bicgstab, tol=1e-4)
    anderson, iteration = jaxopt.AndersonAcceleration, jaxopt.FixedPointIteration
    return [
        Entry(name="jaxopt Picard, default", build=fixed_point(iteration)),
        Entry(name="jaxopt Picard, gmres", build=fixed_point(iteration, implicit_diff_solve=gmres)),
        Entry(name="jaxopt Anderson, default", build=fixed_point(anderson)),
        Entry(
            name="jaxopt Anderson ridge 1e-8, gmres",
            build=fixed_point(anderson, ridge=1e-8, implicit_diff_solve=gmres),
        ),
        Entry(
            name="jaxopt Anderson ridge 1e-8, bicgstab",
            build=fixed_point(anderson, ridge=1e-8, implicit_diff_solve=bicgstab),
        ),
        Entry(
            name="jaxopt Anderson ridge 1e-8, bicgstab 1e-4",
            build=fixed_point(anderson, ridge=1e-8, implicit_diff_solve=looser),
            forward=False,
        ),
        Entry(
            name="jaxopt Broyden step 1, history 30, bicgstab",
            build=broyden(stepsize=1.0, history_size=30, implicit_diff_solve=bicgstab),
        ),
    ]


def optimistix_entries(optx: Any) -> list[Entry]:
    """Solved with throw=False: the residual says what was reached."""
    lx = importlib.import_module("lineax")

    def entry(name, make_solver, **options):
        def build(rtol, norm, max_steps):
            def solve(f, params, z0, x):
                sol = optx.fixed_point(
                    lambda z, args: f(args[0], z, args[1]),
                    make_solver(rtol, norm),
                    z0,
                    (params, x),
                    max_steps=max_steps,
                    throw=False,
                    **options,
                )
                return sol.value, sol.stats["num_steps"]

            return solve

        return Entry(name=name, build=build)

    def iteration(rtol, norm):
        return optx.FixedPointIteration(rtol=0.0, atol=rtol * norm, norm=optx.two_norm)

    # lineax stops on max |r_i| / (atol + rtol |b_i|), stricter than a norm, so atol is set for
    # cotangents near 1e-5; with smaller ones, longer restarts or BiCGStab it reports a breakdown.
    gmres = lx.GMRES(rtol=1e-4, atol=1e-9, restart=10, stagnation_iters=100)
    adjoint = optx.ImplicitAdjoint(linear_solver=gmres)
    return [
        entry("optimistix Picard, default", iteration),
        entry("optimistix Picard, gmres", iteration, adjoint=adjoint),
    ]


def banax_entries(banax: Any) -> list[Entry]:
    """banax stops on the relative residual of the whole batch."""
    del banax
    solvers, adjoints = (importlib.import_module(f"banax.{m}") for m in ("solver", "adjoint"))

    def entry(name, forward, backward):
        def build(rtol, norm, max_steps):
            options = {"rtol": rtol, "max_steps": max_steps}
            rule = adjoints.Implicit(solver=forward(**options), b_solver=backward(**options))

            def solve(f, params, z0, x):
                sol = rule((lambda z, params, x: f(params, z, x), (params, x)), z0)
                return sol.value, sol.stats.steps

            return solve

        return Entry(name=name, build=build, static_rtol=True)

    sharp = partial(solvers.Anderson, ridge=1e-12)
    return [
        entry("banax Picard", solvers.Picard, solvers.Picard),
        entry("banax Anderson", solvers.Anderson, solvers.Anderson),
        entry("banax Anderson ridge 1e-12", sharp, sharp),
        entry("banax Broyden", solvers.Broyden, solvers.Broyden),
        entry("banax Anderson, Broyden adjoint", solvers.Anderson, solvers.Broyden),
    ]


PEERS = {"jaxopt": jaxopt_entries, "optimistix": optimistix_entries, "banax": banax_entries}


def peer_entries() -> tuple[list[Entry], list[str]]:
    """The entries of every installed peer, and the names of the peers that are not installed."""
    entries, absent = [], []
    for name, make in PEERS.items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            absent.append(name)
        else:
            entries += make(module)
    return entries, absent
