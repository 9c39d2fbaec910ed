"""All that is measured of a run, and its numbers as JSON."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.build import Run
from experiments.cli import timed
from experiments.inspection import cheaper, gradients, solves
from experiments.inspection.cheaper import Setting
from experiments.inspection.gradients import Gradient, Quality
from experiments.inspection.solves import Curve, Samples, Spectrum
from experiments.provenance import manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What `measure` found."""

    about: dict[str, Any]
    """The run and the machine, in words and numbers."""
    noun: str
    """What has an nfe and a residual of its own: an example, or a position of a causal solve."""
    quality: str
    """The measure that runs are compared by, as `Task.quality` names it."""
    rtol: float
    """The run's own tolerance."""
    samples: dict[float, Samples]
    """By tolerance."""
    spectrum: Spectrum
    curves: dict[str, Curve]
    """By solver."""
    reference: Gradient
    reference_by: str
    """How the reference was solved."""
    rules: dict[str, tuple[Gradient, Quality]]
    settings: dict[str, Setting]
    advice: str


def measure(
    run: Run,
    variables: dict[str, Any],
    *,
    step: int,
    rtols: Sequence[float],
    examples: int,
    say: Callable[[str], None],
) -> Findings:
    """Measure everything; ``examples`` are the test examples of curves, spectrum and gradients."""
    start, tell = time.perf_counter(), timed(say)
    model, task = run.model, run.task
    samples = {}
    for rtol in rtols:
        tell(f"test examples to rtol {rtol:g}")
        samples[rtol] = solves.samples_at(run, variables, rtol)
    batch = gradients.examples_of(run, examples)
    cell = solves.cell_of(model, variables, batch.inputs)
    tell("spectrum")
    spectrum = solves.spectrum(cell, model.solver)
    fits = spectrum.rate is not None and spectrum.rate < 1
    curves = {}
    for name, solver in solves.solvers_of(model.solver, spectrum.beta if fits else None).items():
        tell(f"solver {name}")
        curves[name] = solves.curve(cell, solver)
    tell("gradient of a tight solve")
    reference, by = gradients.reference(run, variables, batch, cell)
    rules = {}
    for name, (solver, rule) in gradients.rules_of(model).items():
        tell(f"gradient by {name}")
        chosen = model.clone(solver=solver, gradient=rule)
        found = gradients.gradient(run, chosen, variables, batch, cell)
        rules[name] = found, gradients.compare(found.vector, reference.vector)
    tell("cheaper settings")
    settings = cheaper.measure(run, variables, batch, cell, reference)
    tests = task.test_examples
    advice = cheaper.advice(settings, quality=task.quality, tests=tests, reference=reference)
    if gradients.trusted(reference):
        advice = f"{advice} {cheaper.rule_advice(rules)}".strip()
    tell("done")
    return Findings(
        about={
            "model": type(model).__name__,
            "step": step,
            "steps": run.total_steps,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
            "state_entries": spectrum.size,
            "solves_in_the_model": cell.solves,
            "causal": cell.causal,
            "solver": str(model.solver),
            "gradient": str(model.gradient),
            "rtol": model.rtol,
            "max_steps": model.max_steps,
            "test_examples": tests,
            "examples": len(batch.inputs),
            "seconds": time.perf_counter() - start,
            "machine": manifest(),
        },
        noun="position" if cell.causal else "example",
        quality=task.quality,
        rtol=model.rtol,
        samples=samples,
        spectrum=spectrum,
        curves=curves,
        reference=reference,
        reference_by=by,
        rules=rules,
        settings=settings,
        advice=advice,
    )


def as_json(findings: Findings) -> dict[str, Any]:
    """The numbers as plain values: None where one is not finite, gradients without the vector."""
    found = findings

    def samples(one: Samples) -> dict[str, Any]:
        nfe, counts = np.unique(one.nfe, return_counts=True)
        edges, residuals = residual_histogram(one.residual)
        return {
            "count": one.nfe.size,
            "converged": one.converged,
            "nfe": solves.quantiles(one.nfe),
            "nfe_histogram": dict(zip(nfe.tolist(), counts.tolist(), strict=True)),
            "residual": solves.quantiles(one.residual),
            "residual_histogram": {"edges": edges, "counts": residuals},
        }

    def curve(one: Curve) -> dict[str, Any]:
        needed = solves.reached(one.trace, found.rtol)
        return {
            "evaluations_of_a_step": one.evaluations,
            "step_seconds": one.step_seconds,
            "evaluation_seconds": one.evaluation_seconds,
            "evaluations_to_rtol_median": np.median(needed),
            "share_within_rtol": np.isfinite(needed).mean(),
            "residual_median_by_evaluation": [middle(row) for row in one.trace],
        }

    def gradient(one: Gradient) -> dict[str, Any]:
        return {name: value for name, value in one._asdict().items() if name != "vector"}

    spectrum = found.spectrum
    values = spectrum.eigenvalues.values
    numbers = {
        "about": found.about,
        "sample": found.noun,
        "tolerances": {f"{rtol:g}": samples(one) for rtol, one in found.samples.items()},
        "spectrum": {
            "residual": solves.quantiles(spectrum.residual),
            "radius": spectrum.radius,
            "eigenvalues": {
                "real": np.real(values),
                "imaginary": np.imag(values),
                "residual": spectrum.eigenvalues.residual,
            },
            "proposed_beta": spectrum.beta,
            "proposed_beta_rate": spectrum.rate,
        },
        "solvers": {name: curve(one) for name, one in found.curves.items()},
        "reference": {"by": found.reference_by, **gradient(found.reference)},
        "rules": {
            name: gradient(one) | quality._asdict() for name, (one, quality) in found.rules.items()
        },
        "settings": {
            name: {found.quality: one.quality, "nfe": one.nfe, "cost": one.cost}
            | gradient(one.gradient)
            | one.error._asdict()
            for name, one in found.settings.items()
        },
        "advice": found.advice,
    }
    return _plain(numbers)


def residual_histogram(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges, four a decade, and counts; what is 0 or not finite is in no bin."""
    good = residual[np.isfinite(residual) & (residual > 0)]
    if not good.size:
        return np.array([1e-1, 1.0]), np.array([0])
    low, high = np.floor(4 * np.log10(good.min())), np.ceil(4 * np.log10(good.max()))
    edges = 10 ** (np.arange(low, max(high, low + 1) + 1) / 4)
    # Rounding of the powers must not leave the least or the largest outside.
    counts, _ = np.histogram(np.clip(good, edges[0], edges[-1]), edges)
    return edges, counts


def middle(values: np.ndarray) -> float:
    """The median of those that are not NaN; NaN if all are."""
    good = values[~np.isnan(values)]
    return float(np.median(good)) if good.size else math.nan


def _plain(a: Any) -> Any:
    if isinstance(a, dict):
        return {str(name): _plain(value) for name, value in a.items()}
    if isinstance(a, (list, tuple)):
        return [_plain(value) for value in a]
    if isinstance(a, (np.ndarray, np.generic)):
        return _plain(a.tolist())
    return None if isinstance(a, float) and not math.isfinite(a) else a
