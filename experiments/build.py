"""From a configuration to the objects of a run."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

import jdeq
from experiments.config import ConfigError, ExperimentConfig
from jdeq.data import Digits, ShuffledBatches, load_digits
from jdeq.models import MDEQ, MDEQConfig, RevDEQ, RevDEQConfig
from jdeq.training import TrainState, abstract_state, make_init

MODELS: dict[type, Any] = {MDEQConfig: MDEQ, RevDEQConfig: RevDEQ}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What training and evaluation are made of."""

    config: ExperimentConfig
    data: Digits
    batches: ShuffledBatches
    model: MDEQ | RevDEQ
    pretrain_model: MDEQ | RevDEQ  # the same parameters, the cell unrolled
    schedule: jdeq.JacobianSchedule
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.config.loop.save_every_epochs * self.batches.batches_per_epoch

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        return jax.jit(make_init(self.model, self.optimizer))(*self._init_args())

    def abstract_state(self) -> TrainState:
        """Its shapes and dtypes, for a restore."""
        return abstract_state(make_init(self.model, self.optimizer), *self._init_args())

    def _init_args(self) -> tuple[Any, np.ndarray]:
        return jax.random.key(self.config.seed), self.data.train.images[: self.batches.batch_size]


def build(config: ExperimentConfig) -> Run:
    """The objects ``config`` describes.

    Raises:
      ConfigError: for a value that cannot be; nothing was written.
    """
    try:
        return _build(config)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _build(config: ExperimentConfig) -> Run:
    data = load_digits(test_fraction=config.data.test_fraction, seed=config.data.split_seed)
    if config.model.num_classes != 10:
        raise ConfigError(f"model.num_classes must be 10, digits; got {config.model.num_classes}")
    for part in ("loop", "pretrain"):
        for name, value in dataclasses.asdict(getattr(config, part)).items():
            least = 0 if (part, name) == ("pretrain", "steps") else 1
            if value < least:
                raise ConfigError(f"{part}.{name} must be >= {least}; got {value}")
    batches = ShuffledBatches(
        data=data.train,
        batch_size=config.data.batch_size,
        seed=config.seed,
        max_shift=config.data.max_shift,
        background=data.background,
    )
    total_steps = config.loop.epochs * batches.batches_per_epoch
    if config.pretrain.steps >= total_steps:
        raise ConfigError(
            f"pretrain.steps must be < {total_steps}, the length of the run; "
            f"got {config.pretrain.steps}"
        )
    model = MODELS[type(config.model)](
        config.model,
        solver=config.solver.build(),
        gradient=config.gradient.build(),
        rtol=config.solver.rtol,
        max_steps=config.solver.max_steps,
    )
    learning_rate, optimizer = config.optimizer.build(total_steps=total_steps)
    run = Run(
        config=config,
        data=data,
        batches=batches,
        model=model,
        pretrain_model=model.clone(
            solver=jdeq.Picard(), gradient=jdeq.Unrolled(), max_steps=config.pretrain.evaluations
        ),
        schedule=config.regularizer.build(start=config.pretrain.steps, seed=config.seed),
        learning_rate=learning_rate,
        optimizer=optimizer,
        total_steps=total_steps,
    )
    run.abstract_state()  # traces the model: whatever shapes or solver options it refuses, here
    return run
