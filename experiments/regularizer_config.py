"""The penalty of a configuration, and its schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jdeq
from experiments.config_errors import ConfigError, checked
from experiments.controls import column_sum_penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """The penalty on the Jacobian, `jdeq.JacobianSchedule`."""

    kind: Literal["jacobian", "column_sum"] = "jacobian"
    """column_sum: that of Linsley et al. (2020), a control: it bounds no eigenvalue."""
    gamma: float = 0.0
    """Weight of the penalty; 0 is none."""
    probability: float = 1.0
    """Share of the steps that apply it."""
    growth: float = 0.0
    """Added to gamma every ``growth_every`` steps."""
    growth_every: int = 0
    stop: int | None = None
    """The first step without the penalty again; None: it stays."""

    @property
    def penalty(self) -> Callable[..., Any] | None:
        """For `jdeq.linen.DEQ`."""
        return {"jacobian": None, "column_sum": column_sum_penalty}[self.kind]

    def build(self, *, start: int, seed: int) -> jdeq.JacobianSchedule:
        """The schedule; nothing is penalised before step ``start``."""
        if self.stop is not None and self.stop <= start:
            raise ConfigError(
                f"regularizer.stop must be > pretrain.steps ({start}); got {self.stop}"
            )
        if self.kind != "jacobian" and not (self.gamma or self.growth):
            raise ConfigError(
                f"regularizer.gamma must be > 0 where kind is {self.kind!r}; got {self.gamma}"
            )
        return checked(
            "regularizer",
            lambda: jdeq.JacobianSchedule(
                weight=self.gamma,
                probability=self.probability,
                growth=self.growth,
                growth_every=self.growth_every,
                start=start,
                stop=self.stop,
                seed=seed,
            ),
        )
