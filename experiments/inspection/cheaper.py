"""What a run would lose one notch cheaper, and a sentence of advice."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jdeq
from experiments import run_report
from experiments.build import Run, eval_step
from experiments.inspection.gradients import Gradient, Quality, compare, gradient, trusted
from experiments.inspection.solves import Cell
from jdeq.data import Dataset

OWN = "this run"
SAME_SHARE = 0.002  # accuracy or mean IoU, lost
SAME_RATIO = 1.005  # bits per byte, perplexity or error, times as large
SAME_COSINE = 0.99
SAME_ERROR = 1.1  # times that of the run's settings
FIT_COSINE, FIT_ERROR = 0.9, 0.5  # a gradient of the run that is worse comes first
FINE_ERROR = 0.1  # relative error of another rule that is good enough in any case

_SHARES = ("accuracy", "mean_iou")


class Setting(NamedTuple):
    """One row of the table.

    Attributes:
      quality: on the test examples.
      nfe: mean evaluations a sample (position) there.
      gradient: of a batch of test examples; ``error`` is its quality.
    """

    quality: float
    nfe: float
    gradient: Gradient
    error: Quality

    @property
    def cost(self) -> int:
        """Evaluations and products of a training step's solves."""
        return self.gradient.evaluations + self.gradient.products


def notches(model: Any) -> dict[str, Any]:
    """The model as the run solves it, and with one of its settings one notch cheaper, by name.

    A notch: budgets three quarters as large, tolerances ten times as large. Where the backward
    solve follows the forward one, it is held while that changes.
    """
    rule, pinned = model.gradient, model
    found, backward = {OWN: model}, {}
    if isinstance(rule, jdeq.Implicit):
        steps = rule.max_steps or model.max_steps
        rtol = model.rtol if rule.rtol is None else rule.rtol
        rule = dataclasses.replace(rule, max_steps=steps, rtol=rtol)
        pinned = model.clone(gradient=rule)
        backward = {"max_steps": (steps, _fewer(steps)), "rtol": (rtol, 10 * rtol)}
    elif isinstance(rule, jdeq.Phantom):
        backward = {"steps": (rule.steps, _fewer(rule.steps))}
    elif isinstance(rule, jdeq.Neumann):
        backward = {"terms": (rule.terms, _fewer(rule.terms))}
    forward = {
        "max_steps": (model.max_steps, _fewer(model.max_steps)),
        "rtol": (model.rtol, 10 * model.rtol),
    }
    for name, (old, new) in forward.items():
        if _allowed(name, new):
            found[_named("forward", name, old, new)] = pinned.clone(**{name: new})
    for name, (old, new) in backward.items():
        if _allowed(name, new):
            cheaper = dataclasses.replace(rule, **{name: new})
            found[_named("backward", name, old, new)] = model.clone(gradient=cheaper)
    return found


def _fewer(steps: int) -> int:
    """Three quarters, at least one less."""
    return min(math.ceil(0.75 * steps), steps - 1)


def _allowed(name: str, value: float) -> bool:
    return value < 1 if name == "rtol" else value >= 1


def _named(side: str, name: str, old: float, new: float) -> str:
    return f"{side} {name.replace('max_steps', 'budget')} {old:g} -> {new:g}"


def measure(
    run: Run, variables: dict[str, Any], batch: Dataset, cell: Cell, reference: Gradient
) -> dict[str, Setting]:
    """Each of `notches`: the quality where the forward solve changes, and the gradient."""
    rows: dict[str, Setting] = {}
    for name, model in notches(run.model).items():
        if name.startswith("backward"):
            quality, nfe = rows[OWN].quality, rows[OWN].nfe
        else:
            means = run.task.evaluate(eval_step(model, run.task), variables)
            quality, nfe = means[run.task.quality], means["nfe_forward"]
        found = gradient(run, model, variables, batch, cell)
        rows[name] = Setting(quality, nfe, found, compare(found.vector, reference.vector))
    return rows


def advice(rows: Mapping[str, Setting], *, quality: str, tests: int, reference: Gradient) -> str:
    """What to do, in one or two sentences made from the table.

    Args:
      rows: of `measure`, the first that of the run.
      quality: the measure, as `Task.quality` names it.
      tests: how many examples it is the mean of.
      reference: what gradients were compared with.
    """
    own = rows[OWN]
    if not trusted(reference):
        return (
            f"No advice: the tight solve found no fixed point (largest residual "
            f"{max(reference.residual, reference.residual_backward):.0e}), so that nothing says "
            "how wrong a gradient is. First make the equilibrium one that can be solved: more "
            "Jacobian penalty (--regularizer.gamma)."
        )
    if not _fit(own.error):
        return (
            f"Nothing cheaper yet: at its own settings the gradient of the run has a cosine of "
            f"{own.error.cosine:.3f} with that of the tight solve (relative error "
            f"{own.error.relative_error:.1e}). A larger budget, a smaller tolerance, an exact rule "
            "or more Jacobian penalty comes first."
        )
    saving = {name: own.cost - row.cost for name, row in rows.items() if row.cost < own.cost}
    if not saving:
        return (
            "Keep the settings: none of the cheaper ones saves an evaluation, the solves end where "
            "they do for another reason."
        )
    free = [n for n in saving if _loss(own, rows[n], quality, tests) is None]
    if free:
        # Of those that save as much the one that changes the gradient least.
        best = max(free, key=lambda name: (saving[name], -rows[name].error.relative_error))
        row = rows[best]
        return (
            f"Take {best}: it saves {saving[best]} of {own.cost} evaluations and products a step "
            f"({saving[best] / own.cost:.0%}); {_changed(quality, own, row)}, relative gradient "
            f"error {own.error.relative_error:.1e} -> {row.error.relative_error:.1e} "
            f"(cosine {row.error.cosine:.4f})."
        )
    best = max(saving, key=saving.__getitem__)
    return (
        f"Keep the settings: each cheaper one loses something. {best} would save the most, "
        f"{saving[best]} of {own.cost} evaluations and products a step "
        f"({saving[best] / own.cost:.0%}), but {_loss(own, rows[best], quality, tests)}."
    )


def _fit(error: Quality) -> bool:
    return error.cosine >= FIT_COSINE and error.relative_error <= FIT_ERROR


def _loss(own: Setting, row: Setting, quality: str, tests: int) -> str | None:
    """What is lost, in words; None: nothing that matters. Accuracy and mean IoU may fall by 0.2
    points or one example, the others rise by half a percent; the gradient may turn as far as a
    cosine of 0.99, or be as far off as a tenth more than that of the run.
    """
    if quality in _SHARES:
        same = row.quality >= own.quality - max(SAME_SHARE, 1.001 / tests)
    else:
        same = row.quality <= SAME_RATIO * own.quality
    if not same:
        return _changed(quality, own, row)
    error = row.error.relative_error
    if row.error.cosine >= SAME_COSINE or error <= SAME_ERROR * own.error.relative_error:
        return None
    return (
        f"the relative gradient error would rise from {own.error.relative_error:.1e} to "
        f"{error:.1e} (cosine {row.error.cosine:.4f})"
    )


def _changed(quality: str, own: Setting, row: Setting) -> str:
    head, spec = run_report.COLUMNS[quality]
    return f"{head} {own.quality:{spec}} -> {row.quality:{spec}}"


def rule_advice(rules: Mapping[str, tuple[Gradient, Quality]]) -> str:
    """A sentence on the rule that costs least among those whose gradient is as good as that of the
    run, the first of them (by cosine and error, as in `advice`); empty where that is its own, or no
    gradient to compare with.
    """
    (name, (own, ours)), *others = rules.items()
    if not _fit(ours):
        return ""
    best, spent = name, own.evaluations + own.products
    for other, (found, quality) in others:
        good = quality.cosine >= SAME_COSINE
        good &= quality.relative_error <= max(SAME_ERROR * ours.relative_error, FINE_ERROR)
        if good and found.evaluations + found.products < spent:
            best, spent = other, found.evaluations + found.products
    if best == name:
        return ""
    quality = rules[best][1]
    return (
        f"Of the rules {best} is the cheapest that is as good: {spent} evaluations and products in "
        f"place of {own.evaluations + own.products}, relative gradient error "
        f"{ours.relative_error:.1e} -> {quality.relative_error:.1e}."
    )
