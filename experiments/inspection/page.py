"""The findings as one page of HTML that needs nothing beside it."""

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure

from experiments import stopping
from experiments.inspection import solves
from experiments.inspection.findings import Findings
from experiments.inspection.gradients import TRUSTED, trusted
from experiments.inspection.pictures import draw
from experiments.inspection.tables import Grid, grids

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
p.how { color: #555; } p.advice { background: #eef6ee; border-left: 4px solid #3a7d44;
  padding: .7rem 1rem; } p.warning { background: #fdf3e1; border-left: 4px solid #c77c02;
  padding: .7rem 1rem; }
img { width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: .5rem 0; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; vertical-align: bottom; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
dt { color: #555; } dd { margin: 0; }
"""


def render(found: Findings, *, name: str) -> str:
    """The page; ``name`` is that of the run."""
    tables, figures, notes = grids(found), draw(found), captions(found)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(name)}: inspection</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(name)}</h1>",
        _facts(found),
        f'<p class="advice"><b>Advice.</b> {html.escape(found.advice)}</p>',
    ]
    for section, grid in tables.items():
        parts.append(f'<h2 id="{section}">{html.escape(grid.title)}</h2>')
        how, *warnings = notes[section]
        parts.append(f'<p class="how">{html.escape(how)}</p>')
        parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in warnings]
        parts.append(_image(figures[section], grid.title))
        parts.append(f'<div class="wide">{_table(grid)}</div>')
    return "\n".join([*parts, "</body></html>"]) + "\n"


def captions(found: Findings) -> dict[str, list[str]]:
    """How to read each section, and what to be warned of there."""
    about, noun, spectrum = found.about, found.noun, found.spectrum
    solves_in = about["solves_in_the_model"]
    first = f", of the first of {solves_in} solves in the model" if solves_in > 1 else ""
    whole = " (a window, of whose positions the largest)" if about["causal"] else ""
    notes = {
        "samples": [
            f"Each {noun} of the test set (of what of it is held in memory) is solved by "
            f"{about['solver']} until its relative residual ||f(z) - z|| / ||f(z)|| is at most "
            f"rtol, in {stopping.TOLERANCE_STEPS} "
            "evaluations at most. Left: how many evaluations of the cell (nfe) that takes. Right: "
            "the residual of the state that is returned; what lies right of its dashed line was "
            "not solved."
        ],
        "solvers": [
            f"Each solver from the same start on {about['examples']} test examples{first}, without "
            f"a stop: the median relative residual after so many evaluations, the band from 5% to "
            f"95% of the {noun}s. Steeper is better; a curve that levels off has reached the "
            "rounding of float32, or does not converge. NewtonKrylov and Reversible take more than "
            "one evaluation a step, and a product with the Jacobian counts as one. Times are of "
            "all examples together, compiled, on the machine named above."
            + (" NewtonKrylov takes a whole sequence as one sample." if about["causal"] else "")
        ],
        "spectrum": [
            f"The Jacobian J of the cell at the solutions of the same examples{first}. Left: the "
            f"spectral radius of each{whole}; below 1 plain iteration converges, near 0 fast. "
            "Right: the "
            f"leading eigenvalues of {len(spectrum.eigenvalues.values)} of them in the complex "
            f"plane, J being {spectrum.size} by {spectrum.size}; the residual in the table, "
            "||J v - lambda v||, says how well they are known."
        ],
        "rules": [
            f"The gradient of the mean test loss of the same examples in all "
            f"{about['parameters']:,} parameters, beside that of a tight solve "
            f"({found.reference_by}, residuals {found.reference.residual:.0e} forward and "
            f"{found.reference.residual_backward:.0e} backward). "
            "Down is more exact, left is cheaper. A relative error of 1 is that of no "
            "gradient at all; a cosine near 1 is the right direction. Counted as they ran: "
            "evaluations of the cell (forward, and again where a rule does) and products with its "
            "Jacobian, until the slowest sample was done; the pullback to the parameters, which "
            "each rule has, is not among them. Without dropout."
        ],
        "settings": [
            "The run as it was trained, and with one budget three quarters as large or one "
            "tolerance ten times as large. Left: what a training step's solves cost. Right: what "
            "the test set says where the forward solve changes. The gradient is compared with the "
            "same tight solve."
        ],
    }  # fmt: skip
    for rtol, one in found.samples.items():
        if one.converged < 0.95:
            notes["samples"].append(
                f"{1 - one.converged:.1%} of the {noun}s do not reach rtol {rtol:g}."
            )
    share = (~(spectrum.residual <= solves.TIGHT)).mean()
    if share > 0.05:
        notes["spectrum"].append(
            f"{share:.1%} of the {noun}s were not solved to {solves.TIGHT:g} in "
            f"{solves.TIGHT_STEPS} steps: there J is taken where the solver ended."
        )
    if spectrum.rate is None or spectrum.rate >= 1:
        notes["solvers"].append("Reversible is left out: no beta is expected to converge.")
    if not trusted(found.reference):
        notes["rules"].append(
            f"The tight solve did not come below a residual of {TRUSTED:g}: the errors here say "
            "how far the gradients are from one another, not from the truth."
        )
    return notes


def _facts(found: Findings) -> str:
    about = found.about
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = {
        "Model": f"{about['model']}, {about['parameters']:,} parameters, a state of "
        f"{about['state_entries']:,} numbers a sample",
        "Checkpoint": f"step {about['step']:,} of {about['steps']:,}",
        "Solve": f"{about['solver']}, rtol {about['rtol']:g}, at most {about['max_steps']} steps"
        + (", causal" if about["causal"] else ""),
        "Gradient": about["gradient"],
        "Test examples": f"{about['test_examples']:,}; {about['examples']} of them for curves, "
        "spectrum and gradients",
        "Machine": f"{machine['device']} ({machine['cpu_cores']} CPU cores, load "
        f"{machine['load_average']:.1f} at the end), {versions}",
        "Measured in": f"{about['seconds']:.0f} s",
    }
    rows = (f"<dt>{n}</dt><dd>{html.escape(str(v))}</dd>" for n, v in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _table(grid: Grid) -> str:
    def row(tag: str, cells: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + row("th", grid.heads) + "".join(row("td", r) for r in grid.rows) + "</table>"


def _image(figure: Figure, title: str) -> str:
    content = io.BytesIO()
    # Without a date, so that the same findings give the same page.
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(content, format="svg", metadata=metadata)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">'
