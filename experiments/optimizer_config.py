"""The optimiser of a configuration."""

import dataclasses
from typing import Literal

import optax

from experiments.config_errors import ConfigError, checked
from jdeq.training import (
    adamw,
    average_parameters,
    one_cycle,
    sgd,
    warmup_constant,
    warmup_cosine,
    warmup_steps_decay,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its learning rate; all steps here are updates."""

    kind: Literal["adamw", "sgd"] = "adamw"
    momentum: float | None = None
    """sgd: None is 0.9."""
    nesterov: bool | None = None
    """sgd: None is True."""
    learning_rate: float = 1e-3
    """The largest one."""
    schedule: Literal["cosine", "constant", "steps", "plateau", "one_cycle"] = "cosine"
    """After a linear warm-up: half a cosine to 0; as it is; times ``decay_factor`` every
    ``decay_every`` steps; times ``plateau_factor`` whenever the training loss has not improved.
    one_cycle: up and down in half a cosine each."""
    warmup_steps: int = 50
    decay_factor: float | None = None
    """steps: what the learning rate is multiplied by, in (0, 1)."""
    decay_every: int | None = None
    """steps: how often."""
    plateau_factor: float | None = None
    """plateau: what the learning rate is multiplied by, in (0, 1)."""
    plateau_patience: int | None = None
    """plateau: observations without improvement, each the mean loss of ``plateau_steps`` steps."""
    plateau_steps: int | None = None
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ()
    """Regular expressions: parameters with one in their path, as embed/embedding, do not decay."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None does not clip."""
    accumulate: int = 1
    """Batches, each a step of the loop, whose mean gradient makes an update; divides loop.steps.
    For one that is left out as not finite the update waits."""
    ema: float | None = None
    """Decay of a running average of the parameters, in (0, 1), which is then what is tested and
    reported; None: no average."""

    def build(self, *, total_steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
        """The learning rate by step of the loop, and the optimiser that follows it."""
        if self.accumulate < 1 or total_steps % self.accumulate:
            raise ConfigError(
                "optimizer.accumulate must be >= 1 and divide the length of the run "
                f"({total_steps}); got {self.accumulate}"
            )
        if self.no_decay and not self.weight_decay:
            raise ConfigError(
                f"optimizer.no_decay must be empty without weight decay; got {self.no_decay}"
            )
        plateau = {
            "plateau_factor": self.plateau_factor,
            "plateau_patience": self.plateau_patience,
            "plateau_steps": self.plateau_steps,
        }
        decay = {"decay_factor": self.decay_factor, "decay_every": self.decay_every}
        for schedule, options in (("plateau", plateau), ("steps", decay)):
            for name, value in options.items():
                if (value is None) == (self.schedule == schedule):
                    rule = "be given with" if value is None else "be None without"
                    raise ConfigError(
                        f"optimizer.{name} must {rule} the schedule {schedule}; got {value}"
                    )
        own = {"momentum": self.momentum, "nesterov": self.nesterov}
        own = {name: value for name, value in own.items() if value is not None}
        if own and self.kind != "sgd":
            name, value = next(iter(own.items()))
            raise ConfigError(f"optimizer.{name} must be None without the kind sgd; got {value}")
        for name in ("plateau_patience", "plateau_steps"):
            if plateau[name] is not None and plateau[name] < 1:
                raise ConfigError(f"optimizer.{name} must be >= 1; got {plateau[name]}")
        if self.plateau_factor is not None and not 0 < self.plateau_factor < 1:
            raise ConfigError(
                f"optimizer.plateau_factor must lie in (0, 1); got {self.plateau_factor}"
            )

        def make():
            options = {"peak": self.learning_rate, "warmup_steps": self.warmup_steps}
            updates = total_steps // self.accumulate
            if self.schedule == "cosine":
                schedule = warmup_cosine(total_steps=updates, **options)
            elif self.schedule == "one_cycle":
                schedule = one_cycle(total_steps=updates, **options)
            elif self.schedule == "steps":
                schedule = warmup_steps_decay(
                    every=decay["decay_every"], factor=decay["decay_factor"], **options
                )
            else:
                schedule = warmup_constant(**options)
            make_update = sgd if self.kind == "sgd" else adamw
            update = make_update(
                schedule,
                weight_decay=self.weight_decay,
                no_decay=self.no_decay,
                clip_norm=self.clip_norm,
                **own,
            )
            every = self.accumulate
            if every > 1:
                update = optax.MultiSteps(update, every).gradient_transformation()
            if self.schedule == "plateau":
                update = optax.chain(
                    update,
                    optax.contrib.reduce_on_plateau(
                        factor=plateau["plateau_factor"],
                        patience=plateau["plateau_patience"],
                        # of every batch: MultiSteps would show it the last one's loss only
                        accumulation_size=plateau["plateau_steps"] * every,
                    ),
                )
            if self.ema is not None:
                update = optax.chain(update, average_parameters(self.ema, every=every))
            return lambda step: schedule(step // every), update

        return checked("optimizer", make)
