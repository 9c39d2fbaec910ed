"""Reversible gradients: error of the N-step gradient, memory and step time beside Unrolled."""

import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jdeq
from experiments.bench.harness import Case, Result, measure
from experiments.bench.problems import problem_b, transformer_cell
from experiments.bench.report import write

MAPS = {
    "random, spectral radius 0.9": 0.9,
    "symmetric, spectral radius 0.95": None,
    "random, spectral radius 1.2": 1.2,
}
BOUND = 2e-5
NO_ANCHORS = jdeq.ReversibleGradient(rtol=1e30)


def tanh_map(params, z, x):
    """tanh(W z + x) for a batch of rows."""
    return jnp.tanh(z @ params["w"].T + x)


def draw(radius: float | None, seed: int, width: int, batch: int) -> tuple[np.ndarray, ...]:
    """W (symmetric within 0.95 where no radius is given), x and the weights of the loss."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((width, width))
    if radius is None:
        q, _ = np.linalg.qr(w)
        w = (q * np.linspace(-0.95, 0.95, width)) @ q.T
    else:
        w *= radius / np.abs(np.linalg.eigvals(w)).max()
    return w, rng.standard_normal((batch, width)), rng.standard_normal((batch, width))


def gradients(rule, dtype: str, beta: float, steps: int, drawn: list) -> np.ndarray:
    """Gradient for (w, x) of exactly ``steps`` steps, float64[seeds, size], one seed a row."""
    solver = jdeq.Reversible(beta=beta)

    def gradient(w, x, weights):
        def loss(params, x):
            sol = jdeq.fixed_point(
                tanh_map, params, jnp.zeros_like(x), x, solver=solver, gradient=rule,
                rtol=0.0, atol=1e-30, max_steps=steps,
            )  # fmt: skip
            return jnp.sum(weights * sol.z)

        return jax.grad(loss, argnums=(0, 1))({"w": w}, x)

    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 0 is meant: no sample stops early
        stacked = [jnp.asarray(np.stack(a), dtype) for a in zip(*drawn, strict=True)]
        out = jax.jit(jax.vmap(gradient))(*stacked)
        rows = [np.asarray(a, np.float64).reshape(len(drawn), -1) for a in jax.tree.leaves(out)]
    return np.concatenate(rows, axis=1)


def error_results(betas, lengths, seeds: int, width: int, batch: int, report) -> list[Result]:
    """Worst relative error over the seeds, of the whole gradient, against unrolled float64."""
    results = []
    drawn = [draw(r, seed, width, batch) for r in MAPS.values() for seed in range(seeds)]
    for beta in betas:
        every = jdeq.ReversibleGradient().anchor_every(
            jdeq.Reversible(beta=beta), jnp.zeros(1, jnp.float32)
        )
        for steps in lengths:
            truth = gradients(jdeq.Unrolled(), "float64", beta, steps, drawn)

            def worst(rule, dtype, truth=truth, beta=beta, steps=steps):
                off = gradients(rule, dtype, beta, steps, drawn) - truth
                error = np.linalg.norm(off, axis=1) / np.linalg.norm(truth, axis=1)
                return error.reshape(len(MAPS), seeds).max(axis=1)

            errors = {
                "error_anchors": worst(jdeq.ReversibleGradient(), "float32"),
                "error_no_anchors": worst(NO_ANCHORS, "float32"),
                "error_float64": worst(NO_ANCHORS, "float64"),
                "error_backprop": worst(jdeq.Unrolled(), "float32"),
            }
            errors["error_asked"] = np.maximum(BOUND, 3 * errors["error_backprop"])
            for i, name in enumerate(MAPS):
                facts = {key: float(values[i]) for key, values in errors.items()}
                case = Case(
                    group=f"gradient error, {name}", name=f"beta {beta}, N {steps}",
                    make=lambda f: f, f=tanh_map, args=(), reference="",
                )  # fmt: skip
                results.append(Result(case=case, facts={**facts, "anchor_every": every}))
            report(f"gradient error: beta {beta}, N {steps}")
    return sorted(results, key=lambda r: list(MAPS).index(r.case.group.split(", ", 1)[1]))


def step_cases(lengths, cell: tuple, size: str) -> list[Case]:
    """value_and_grad of N steps on a transformer cell, by three rules."""
    f, params, z0, x = cell
    rules = {
        "jdeq ReversibleGradient": jdeq.ReversibleGradient(),
        "Unrolled, checkpointed": jdeq.Unrolled(),
        "Unrolled, activations kept": jdeq.Unrolled(checkpoint=False),
    }

    def make(rule, steps, f):
        def loss(params, z0, x):
            sol = jdeq.fixed_point(
                f, params, z0, x, solver=jdeq.Reversible(beta=0.5), gradient=rule, rtol=0.0,
                atol=1e-30, max_steps=steps,
            )  # fmt: skip
            return jnp.mean(sol.z**2)

        return jax.value_and_grad(loss)

    return [
        Case(
            group=f"value_and_grad, transformer cell {size}, beta 0.5, N {steps}",
            name=name,
            make=partial(make, rule, steps),
            f=f,
            args=(params, z0, x),
            reference="Unrolled, checkpointed",
        )
        for steps in lengths
        for name, rule in rules.items()
    ]


def over_relaxation_note(width: int) -> str:
    """Evaluations on problem B of Picard and of the pair, with fixed and with proposed beta."""
    problem = problem_b(width=width)

    def solve(solver):
        return jdeq.fixed_point(
            problem.f, problem.params, problem.z0, problem.x, solver=solver, rtol=1e-5,
            max_steps=400,
        )  # fmt: skip

    z = solve(jdeq.Picard()).z[:4]
    proposal = jdeq.propose_beta(problem.f, problem.params, z, problem.x[:4], jax.random.key(0))
    solvers = {
        "Picard": jdeq.Picard(),
        "beta 0.8": jdeq.Reversible(beta=0.8),
        f"proposed beta {proposal.beta:g}": jdeq.Reversible(beta=proposal.beta),
    }
    counts = [f"{name} {int(solve(s).stats.nfe.max())}" for name, s in solvers.items()]
    return f"B, evaluations of the slowest sample at rtol 1e-5: {', '.join(counts)}"


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Measure everything in one process and write the report to ``out``."""
    report = partial(print, flush=True)
    if quick:
        errors = error_results([0.5], [4], 2, 16, 2, report)
        cases = step_cases([4], transformer_cell(1, 8, 16, 2), "1 x 8 x 16")
    else:
        betas, lengths = [0.3, 0.5, 0.8, 0.95, 1.4], [4, 8, 16, 32, 64]
        errors = error_results(betas, lengths, 10, 64, 8, report)
        cell = transformer_cell(8, 64, 128, 4)
        cases = step_cases([8, 16, 32, 64, 128, 256], cell, "8 x 64 tokens, width 128")
    warnings.simplefilter("ignore")  # a tolerance of 0 is meant: every sample takes N steps
    results = measure(cases, rounds=rounds, temp_limit_mib=8192.0, report=report)
    missed = [r for r in errors if r.facts["error_anchors"] > r.facts["error_asked"]]
    notes = [
        f"gradient error: {len(errors) - len(missed)} of {len(errors)} rows within what is asked",
        over_relaxation_note(32 if quick else 256),
    ]
    settings = {"rounds": rounds, "quick": quick}
    write(out, "reversible", [*errors, *results], notes, settings, [cases[-1].group])
    print((out / "table.md").read_text())
