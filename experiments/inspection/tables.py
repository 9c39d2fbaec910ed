"""The findings as tables of text, for the terminal and for the page."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments import run_report, tables
from experiments.inspection import solves
from experiments.inspection.findings import Findings


class Grid(NamedTuple):
    """A heading, the names of the columns, the rows."""

    title: str
    heads: list[str]
    rows: list[list[str]]

    def show(self, console: Console) -> None:
        """On the terminal."""
        options = {"title": self.title, "title_justify": "left", "title_style": "bold"}
        tables.show(console, self.heads, self.rows, **options)


def grids(found: Findings) -> dict[str, Grid]:
    """All of them, by section."""
    return {
        "samples": _samples(found),
        "solvers": _solvers(found),
        "spectrum": _spectrum(found),
        "rules": _rules(found),
        "settings": _settings(found),
    }


def _samples(found: Findings) -> Grid:
    heads = ["rtol", "", f"{found.noun}s", "converged", *solves.quantiles([0.0])]
    rows = []
    for rtol, samples in found.samples.items():
        share = f"{samples.converged:.1%}"
        nfe = [f"{v:.1f}" if n == "mean" else f"{v:g}" for n, v in _spread(samples.nfe)]
        residual = [f"{v:.1e}" for _, v in _spread(samples.residual)]
        rows.append([f"{rtol:g}", "nfe", str(samples.nfe.size), share, *nfe])
        rows.append(["", "residual", "", "", *residual])
    return Grid("Test examples at tolerances", heads, rows)


def _spread(values: np.ndarray) -> Iterable[tuple[str, float]]:
    return solves.quantiles(values).items()


def _solvers(found: Findings) -> Grid:
    rtol = found.rtol
    heads = [
        "solver", f"evaluations to {rtol:g} (median)", f"within {rtol:g}",
        f"median residual after {solves.EVALUATIONS}", "evaluations a step", "a step (ms)",
        "an evaluation (ms)",
    ]  # fmt: skip
    rows = []
    for name, curve in found.curves.items():
        needed = solves.reached(curve.trace, rtol)
        median, milliseconds = np.median(needed), 1e3 * curve.step_seconds
        last = solves.latest(curve.trace)
        rows.append([
            name,
            f"{median:g}" if np.isfinite(median) else f"> {solves.EVALUATIONS}",
            f"{np.isfinite(needed).mean():.1%}",
            f"{np.median(last):.1e}",
            f"{curve.evaluations:.1f}",
            _ms(milliseconds),
            _ms(1e3 * curve.evaluation_seconds),
        ])  # fmt: skip
    return Grid("Solvers", heads, rows)


def _spectrum(found: Findings) -> Grid:
    radius, eigenvalues = found.spectrum.radius, found.spectrum.eigenvalues
    heads = ["sample", "spectral radius", "leading eigenvalues", "largest residual of those"]
    rows = []
    for index, (values, residual) in enumerate(zip(*eigenvalues, strict=True)):
        # One of each conjugate pair.
        kept = np.flatnonzero((np.imag(values) >= 0) & np.isfinite(values))[:4]
        shown = ", ".join(_complex(v) for v in values[kept])
        worst = f"{residual[kept].max():.0e}" if kept.size else ""
        rows.append([str(index), f"{radius[index]:.3f}", shown, worst])
    rows.append([f"all {len(radius)}, mean", f"{radius.mean():.3f}", "", ""])
    rows.append([f"all {len(radius)}, largest", f"{radius.max():.3f}", "", ""])
    return Grid("Spectrum of the Jacobian at the solutions", heads, rows)


def _complex(value: complex) -> str:
    return f"{value.real:.2f}" + (f" ± {value.imag:.2f}i" if value.imag else "")


def _rules(found: Findings) -> Grid:
    heads = [
        "rule", "cosine", "relative error", "evaluations", "products", "seconds",
        "backward residual",
    ]  # fmt: skip
    rows = []
    for name, (gradient, quality) in found.rules.items():
        backward = gradient.residual_backward
        rows.append([
            name,
            f"{quality.cosine:.4f}",
            f"{quality.relative_error:.1e}",
            str(gradient.evaluations),
            str(gradient.products),
            f"{gradient.seconds:.3f}",
            "" if np.isnan(backward) else f"{backward:.0e}",
        ])  # fmt: skip
    tight = found.reference
    rows.append([
        "the tight solve", "", "", str(tight.evaluations), str(tight.products),
        f"{tight.seconds:.3f}", f"{tight.residual_backward:.0e}",
    ])  # fmt: skip
    return Grid("Gradient by each rule", heads, rows)


def _settings(found: Findings) -> Grid:
    own = next(iter(found.settings.values()))
    name, spec = run_report.COLUMNS[found.quality]
    heads = [
        "setting", name, "mean nfe", "evaluations + products a step", "saved", "cosine",
        "relative gradient error",
    ]  # fmt: skip
    rows = []
    for setting, row in found.settings.items():
        saved = own.cost - row.cost
        rows.append([
            setting,
            f"{row.quality:{spec}}",
            f"{row.nfe:.2f}",
            f"{row.gradient.evaluations} + {row.gradient.products}",
            f"{saved} ({saved / own.cost:.0%})",
            f"{row.error.cosine:.4f}",
            f"{row.error.relative_error:.1e}",
        ])  # fmt: skip
    return Grid("One notch cheaper", heads, rows)


def _ms(value: float) -> str:
    return f"{value:.3g}"
