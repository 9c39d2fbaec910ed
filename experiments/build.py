"""From a configuration to the objects of a run."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

import jdeq
from experiments.config import ConfigError, ExperimentConfig
from experiments.models import EXPLICIT, MODELS
from experiments.task import Batches, Task
from jdeq.data import Streams
from jdeq.models import MDEQSegmenterConfig, MonDEQ, ScalarDEQConfig
from jdeq.training import (
    EvalStep,
    Layout,
    LossFn,
    TrainState,
    TrainStep,
    abstract_state,
    cross_entropy_loss,
    make_eval_step,
    make_init,
    make_train_step,
    squared_error_loss,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What training and evaluation are made of."""

    config: ExperimentConfig
    task: Task
    model: Any  # one of MODELS
    pretrain_model: Any  # the same parameters, the cell unrolled
    schedule: jdeq.JacobianSchedule
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    layout: Layout | None = None
    """Where the state lives; None: on one device."""

    def spread(self) -> "Run":
        """The same run over all devices of all processes, as its configuration says.

        Raises:
          ConfigError: if the devices, or the batch, do not divide so.
        """
        layout = self.config.mesh.layout()
        try:
            layout.rows(self.task.batches.batch_size)
        except ValueError as error:
            raise ConfigError(f"data.batch_size: {error}") from error
        state = set(self.abstract_state().model_state) - {"memory"}
        if self.config.mesh.local_stop and state:
            raise ConfigError(
                f"mesh.local_stop must be False for a model with the state {sorted(state)}"
            )
        return dataclasses.replace(self, layout=layout)

    @property
    def total_steps(self) -> int:
        """The length of the run."""
        return self.config.loop.steps

    @property
    def implicit(self) -> bool:
        """Whether the model has an equilibrium to solve for."""
        return not isinstance(self.config.model, EXPLICIT)

    def loss(self, model: Any) -> LossFn:
        """What ``model`` is trained for."""
        probe_backward = self.implicit and model.gradient.has_probe
        if self.task.regression:
            return squared_error_loss(model, probe_backward=probe_backward)
        return cross_entropy_loss(
            model, probe_backward=probe_backward, by_labels=gives_losses(model)
        )

    def train_step(self, model: Any) -> TrainStep:
        """The update that trains ``model``."""
        mesh = self.config.mesh
        return make_train_step(
            self.loss(model),
            self.optimizer,
            layout=self.layout,
            local_stop=mesh.local_stop and self.layout is not None,
            compute_dtype=None if mesh.compute_dtype == "float32" else mesh.compute_dtype,
        )

    def batch_at(self, position: int) -> Any:
        """The training batch at ``position``, on the devices."""
        if self.layout is None:
            return self.task.batches(position)
        return self.layout.put(self._rows(position), self.task.batches.batch_size)

    @functools.cached_property
    def _rows(self) -> Batches:
        """What this process makes of the batches."""
        assert self.layout is not None
        return self.task.rows(self.layout.rows(self.task.batches.batch_size))

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        init, args = make_init(self.model, self.optimizer), self._init_args()
        if self.layout is None:
            return jax.jit(init)(*args)
        placement = self.layout.state(jax.eval_shape(init, *args))
        return jax.jit(init, out_shardings=placement)(*args)

    def abstract_state(self) -> TrainState:
        """Its shapes, dtypes and placement, for a restore."""
        init, args = make_init(self.model, self.optimizer), self._init_args()
        if self.layout is None:
            return abstract_state(init, *args)
        return self.layout.placed(jax.eval_shape(init, *args))

    def _init_args(self) -> tuple[Any, np.ndarray]:
        return jax.random.key(self.config.seed), self.task.batches(0).inputs


def gives_losses(model: Any) -> bool:
    """Whether a model is to be asked for losses, its vocabulary being too large for logits."""
    return bool(getattr(model.config, "cutoffs", ()))


def eval_step(model: Any, task: Task, *, layout: Layout | None = None) -> EvalStep:
    """The evaluation of ``model`` on the test examples of ``task``."""
    return make_eval_step(
        model,
        segment=task.segment,
        by_labels=gives_losses(model),
        squared_error=task.regression,
        layout=layout,
    )


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


_MAY_BE_ZERO = (
    ("pretrain", "steps"),
    ("loop", "budget_jitter"),
    ("loop", "profile_from"),
    ("loop", "power_iteration"),
)


def _build(config: ExperimentConfig) -> Run:
    for part in ("loop", "pretrain"):
        for name, value in dataclasses.asdict(getattr(config, part)).items():
            least = 0 if (part, name) in _MAY_BE_ZERO else 1
            values = value if isinstance(value, tuple) else (value,)
            if value is not None and name != "rtols" and min(values, default=0) < least:
                raise ConfigError(f"{part}.{name} must be >= {least}; got {value}")
    jitter, budget = config.loop.budget_jitter, config.solver.max_steps
    if jitter >= budget or (jitter and isinstance(config.model, EXPLICIT)):
        raise ConfigError(
            f"loop.budget_jitter must be < solver.max_steps ({budget}), and 0 for an explicit "
            f"model; got {jitter}"
        )
    if not config.loop.rtols or not all(0 < rtol < 1 for rtol in config.loop.rtols):
        raise ConfigError(f"loop.rtols must lie in (0, 1); got {config.loop.rtols}")
    if (config.loop.profile_from or 0) >= config.loop.steps:
        raise ConfigError(
            f"loop.profile_from must be < {config.loop.steps}, the length of the run, or None; got "
            f"{config.loop.profile_from}"
        )
    if config.seed < 0:
        raise ConfigError(f"seed must be >= 0; got {config.seed}")
    if config.pretrain.steps >= config.loop.steps:
        raise ConfigError(
            f"pretrain.steps must be < {config.loop.steps}, the length of the run; "
            f"got {config.pretrain.steps}"
        )
    task = config.data.build(config.seed)
    _check_fit(config, task)
    model = pretrain_model = MODELS[type(config.model)](config.model)
    splitting = config.splitting.build()
    if isinstance(model, MonDEQ):
        model = model.clone(splitting=splitting)
    elif splitting is not None:
        kind = type(config.model).__name__
        raise ConfigError(
            f"splitting is for monotone models, and a {kind} is none; got {splitting}"
        )
    if isinstance(config.model, EXPLICIT):
        _refuse_options_of_a_solve(config)
    else:
        model = model.clone(
            solver=config.solver.build(),
            gradient=config.gradient.build(),
            rtol=config.solver.rtol,
            max_steps=config.solver.max_steps,
            test_every=config.solver.test_every,
            penalty=config.regularizer.penalty,
        )
        pretrain_model = model.clone(
            solver=jdeq.Picard(), gradient=jdeq.Unrolled(), max_steps=config.pretrain.evaluations
        )
    learning_rate, optimizer = config.optimizer.build(total_steps=config.loop.steps)
    run = Run(
        config=config,
        task=task,
        model=model,
        pretrain_model=pretrain_model,
        schedule=config.regularizer.build(start=config.pretrain.steps, seed=config.seed),
        learning_rate=learning_rate,
        optimizer=optimizer,
    )
    run.abstract_state()  # traces the model: whatever shapes or solver options it refuses, here
    return run


def _check_fit(config: ExperimentConfig, task: Task) -> None:
    """Refuse a model that cannot read the data's inputs, or has another number of outputs."""
    if isinstance(config.model, ScalarDEQConfig) != task.regression:
        kind, are = type(config.model).__name__, "numbers" if task.regression else "classes"
        raise ConfigError(f"data must fit a {kind}; their labels are {are}")
    reads_tokens = hasattr(config.model, "vocab_size")
    if reads_tokens != np.issubdtype(task.test.inputs.dtype, np.integer):
        kind = type(config.model).__name__
        raise ConfigError(f"data must be {'text' if reads_tokens else 'images'} for a {kind}")
    if isinstance(config.model, MDEQSegmenterConfig) != task.labels_pixels:
        kind, has = type(config.model).__name__, "each pixel" if task.labels_pixels else "an image"
        raise ConfigError(f"data must fit a {kind}; they have a label for {has}")
    name = "vocab_size" if reads_tokens else "num_classes"
    outputs = 0 if task.regression else getattr(config.model, name)
    if getattr(config.model, "memory", 0) and not isinstance(task.batches, Streams):
        raise ConfigError("data.contiguous must be True for a model with a memory; got False")
    held = len(task.test.labels)
    if not isinstance(config.model, EXPLICIT) and config.loop.spectrum_examples > held:
        raise ConfigError(
            f"loop.spectrum_examples must be <= {held}, the test examples held in memory; got "
            f"{config.loop.spectrum_examples}"
        )
    # A vocabulary may be padded, to a size that suits the hardware.
    if outputs != task.classes and not (reads_tokens and outputs > task.classes):
        raise ConfigError(f"model.{name} must be {task.classes}, that of the data; got {outputs}")


def _refuse_options_of_a_solve(config: ExperimentConfig) -> None:
    for field in dataclasses.fields(config):
        if field.name in ("solver", "gradient", "regularizer", "pretrain"):
            if getattr(config, field.name) != field.default:
                kind = type(config.model).__name__
                raise ConfigError(
                    f"{field.name} must be left as it is for a {kind}: it is explicit"
                )
