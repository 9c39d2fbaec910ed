"""A warning when a model in training takes ever more evaluations, or is solved ever worse."""

import math
import statistics
from collections.abc import Callable

from jdeq.training.metrics import Metrics

_NFE_RISE = 1.5
_RESIDUAL_RISE = 10.0
_ROOM = 0.9  # a run that always spends its budget has no rise to speak of


class Watch:
    """A sink that says when evaluations or residuals rise: the map is becoming less contractive.

    Means over windows of records are compared with the smallest one so far: a rise is 1.5 times as
    many evaluations in the forward solve or all of the budget, where there were at most 0.9 of it,
    and ten times the residual. Each rise is reported once: again only after it was half undone
    (on a logarithmic scale). Nothing is kept on disk: a run that is resumed is watched afresh, so
    that a rise from before its resumption is not seen.

    Args:
      budget: evaluations that the forward solve may take; None: not known.
      start: records up to this step are left out, such as those of a pre-training.
      window: records in a mean, >= 1.
      report: called with a sentence.
    Raises:
      ValueError: when built, if ``window`` < 1.
    """

    def __init__(
        self,
        *,
        budget: int | None,
        start: int = 0,
        window: int = 5,
        report: Callable[[str], None] = print,
    ):
        if window < 1:
            raise ValueError(f"jdeq.training.Watch: window must be >= 1; got {window}")
        self._budget, self._start, self._window, self._report = budget, start, window, report
        self._records: list[Metrics] = []
        self._best: dict[str, float] = {}
        self._risen: set[str] = set()

    def write(self, step: int, kind: str, metrics: Metrics) -> None:
        if kind != "train" or step <= self._start:
            return
        self._records.append(metrics)
        if len(self._records) < self._window:
            return
        for name in ("nfe_forward", "residual_mean"):
            self._judge(step, name, statistics.fmean(record[name] for record in self._records))
        self._records = []

    def close(self) -> None:
        pass

    def _judge(self, step: int, name: str, mean: float) -> None:
        if math.isnan(self._best.get(name, math.nan)):
            self._best[name] = mean
        best = self._best[name]
        limit = self._limit(name, best)
        if mean >= limit and mean > best and name not in self._risen:
            self._risen.add(name)
            what = {"nfe_forward": "evaluations", "residual_mean": "mean residual"}[name]
            spent = name == "nfe_forward" and self._budget is not None and mean >= self._budget
            self._report(
                f"warning: step {step}: the {what} of the forward solve rose from {best:.3g} to "
                f"{mean:.3g}{f', all of the budget ({self._budget})' if spent else ''}: the map "
                "is becoming less contractive. Raise regularizer.gamma, or allow more steps "
                "(solver.max_steps); jdeq.spectral_radius measures it"
            )
        elif mean < math.sqrt(best * limit):
            self._risen.discard(name)
        self._best[name] = min(best, mean)

    def _limit(self, name: str, best: float) -> float:
        if name == "residual_mean":
            return _RESIDUAL_RISE * best
        if self._budget is None or best > _ROOM * self._budget:
            return _NFE_RISE * best
        return min(_NFE_RISE * best, self._budget)
