"""The training loop: everything on the host between two steps, and nothing about any task."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdeq.regularizers import JacobianSchedule
from jdeq.training.checkpoints import Checkpoints
from jdeq.training.hardware import peak_memory
from jdeq.training.metrics import Metrics, Sink, summarize
from jdeq.training.profiling import Profile
from jdeq.training.state import TrainState
from jdeq.training.step import TrainStep
from jdeq.training.stop import StopRequest


class NonFiniteError(RuntimeError):
    """Training was given up after too many non-finite steps in a row.

    Args:
      message: for the user.
      steps: what to replay them by, in order: "position", "phase" (which of the loop's), "weight",
        "penalize" and "metrics" of each; those before a resumption are not among them.
    """

    def __init__(self, message: str, steps: Sequence[dict[str, Any]] = ()):
        super().__init__(message)
        self.steps = list(steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """Train with one of ``steps``, drawn by (seed, position), while fewer than ``until`` steps have
    been taken.

    Raises:
      ValueError: when built, if there are no ``steps``.
    """

    until: int
    steps: Sequence[TrainStep]
    seed: int = 0

    def __post_init__(self):
        if not self.steps:
            raise ValueError("jdeq.training.Phase: steps must have at least one entry; got none")

    def step_at(self, position: int) -> TrainStep:
        """The step to take at a position of the run; the same whenever asked."""
        drawn = np.random.default_rng((self.seed, position)).integers(len(self.steps))
        return self.steps[int(drawn)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """Takes the steps of a run, from wherever its state stands.

    Deterministic: the parameters after step n depend on the initial state and n only, however
    often the run was stopped and resumed on the way.

    Args:
      phases: in order of ``until``; the last one's is the length of the run.
      batch_at: the batch at a position of the data; the position is the step. Asked for one step
        ahead, while the devices work.
      items: what is counted in it, "examples" or "tokens", for the throughput.
      items_per_step: how many of them it has.
      schedule: when and how strongly the Jacobian penalty applies.
      hooks: pairs (every, hook): after every so many steps and after the last one, ``hook(state)``
        gives (kind, metrics) for the sinks.
      log_every: steps summed up in one "train" record.
      save_every: steps between checkpoints.
      max_skipped: non-finite steps in a row after which to give up.
      quality: of a state that is saved, the larger the better: the best checkpoint stays beside
        the newest. None, or where it gives None: not rated.
      restarts: whether the data at a position does not go on from the position before it: the
        collection "memory" of the model is emptied there.
      learning_rate: by step, those not counted that were skipped, before a plateau's scale; for
        the record only.
      profile: a trace of some steps; None: none.
      peak_flops: operations a second that a device could do, for "mfu", the share of it that the
        "flops" of the steps are (`count_flops`); None: without it.
    """

    phases: Sequence[Phase]
    batch_at: Callable[[int], Any]
    items: str
    items_per_step: int
    schedule: JacobianSchedule
    hooks: Sequence[tuple[int, Callable[[TrainState], tuple[str, Metrics]]]]
    log_every: int
    save_every: int
    max_skipped: int
    learning_rate: Callable[[int], Any]
    quality: Callable[[TrainState], float | None] = lambda state: None
    restarts: Callable[[int], bool] = lambda position: False
    profile: Profile | None = None
    peak_flops: float | None = None
    _ahead: dict[int, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def run(
        self,
        state: TrainState,
        *,
        checkpoints: Checkpoints,
        sinks: Sequence[Sink],
        stop: StopRequest,
        extra: dict[str, Any],
    ) -> TrainState:
        """Train until the last step or ``stop``; saved either way.

        Args:
          state: where to start; donated.
          checkpoints: where to save.
          sinks: what is told.
          stop: read after every step.
          extra: JSON saved beside each state; its "train_seconds", the time that earlier parts of
            the run took, is kept up to date.
        Returns:
          the last state.
        Raises:
          NonFiniteError: after ``max_skipped`` non-finite steps in a row; nothing is saved then,
            so that the last checkpoint stands before the trouble.
        """
        total = self.phases[-1].until
        begin = time.perf_counter() - extra["train_seconds"]
        position, records, skipped = int(state.step), [], []
        stopped = False
        while position < total and not stopped:
            if self.profile:
                self.profile.before(position)
            state, metrics = self.step(state, position)
            skipped = [*skipped, (position, metrics)] if int(state.skipped_in_row) else []
            position += 1
            stopped = stop.reached(position)
            records.append(metrics)
            if int(state.skipped_in_row) >= self.max_skipped:
                if self.profile:
                    self.profile.close()
                checkpoints.finish()
                message = self._non_finite_report(state, metrics)
                raise NonFiniteError(message, [self._to_replay(*step) for step in skipped])
            if position % self.log_every == 0 or position == total or stopped:
                for sink in sinks:
                    sink.write(position, "train", self._record(records, state))
                records = []
            for every, hook in self.hooks:
                if position == total or (position % every == 0 and not stopped):
                    kind, values = hook(state)
                    for sink in sinks:
                        sink.write(position, kind, values)
            saving = position % self.save_every == 0 and position < total and not stopped
            if saving and not skipped:  # never from amid a row of bad steps
                extra["train_seconds"] = time.perf_counter() - begin
                checkpoints.save(state, extra, quality=self.quality(state))
        if self.profile:
            self.profile.close()
        extra["train_seconds"] = time.perf_counter() - begin
        checkpoints.save(state, extra, quality=self.quality(state))
        checkpoints.finish()
        return state

    def step(self, state: TrainState, position: int) -> tuple[TrainState, Metrics]:
        """The step at ``position``, waited for; ``state`` is donated."""
        phase = self.phases[self._phase_at(position)]
        start = time.perf_counter()
        if "memory" in state.model_state and self.restarts(position):
            empty = jax.tree.map(jnp.zeros_like, state.model_state["memory"])
            state = state._replace(model_state={**state.model_state, "memory": empty})
        ready = position in self._ahead
        batch = self._ahead.pop(position) if ready else self.batch_at(position)
        state, metrics = phase.step_at(position)(
            state,
            batch,
            self.schedule.weight_at(position),
            penalize=self.schedule.active(position),
        )
        # The next batch is made, and goes to the devices, while they are at work on this one.
        self._ahead.clear()
        if position + 1 < self.phases[-1].until:
            self._ahead[position + 1] = self.batch_at(position + 1)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        jax.block_until_ready(state)
        values["step_seconds"] = time.perf_counter() - start
        return state, values

    def _phase_at(self, position: int) -> int:
        return next(n for n, phase in enumerate(self.phases) if position < phase.until)

    def _to_replay(self, position: int, metrics: Metrics) -> dict[str, Any]:
        return {
            "position": position,
            "phase": self._phase_at(position),
            "weight": float(self.schedule.weight_at(position)),
            "penalize": bool(self.schedule.active(position)),
            "metrics": metrics,
        }

    def _record(self, records: list[Metrics], state: TrainState) -> Metrics:
        record = summarize(records)
        record[f"{self.items}_per_second"] = self.items_per_step / record["step_seconds"]
        scale = record.pop("learning_rate_scale")
        taken = max(int(state.step) - int(state.skipped), 1)  # the optimiser counts no other
        record["learning_rate"] = float(self.learning_rate(taken - 1)) * scale
        if "flops" in record:
            record["flops_per_second"] = record.pop("flops") / record["step_seconds"]
            if self.peak_flops is not None:
                devices = len(state.step.sharding.device_set)
                record["mfu"] = record["flops_per_second"] / (self.peak_flops * devices)
        return record | peak_memory()

    def _non_finite_report(self, state: TrainState, metrics: Metrics) -> str:
        last = int(state.step) - 1
        return (
            f"{int(state.skipped_in_row)} steps in a row had a non-finite loss or gradient (steps "
            f"{last - int(state.skipped_in_row) + 1} to {last}; {int(state.skipped)} in all).\n"
            f"Last one: loss {metrics['loss_nats']}, gradient norm {metrics['grad_norm']}, forward "
            f"residual {metrics['residual_max']}, backward residual "
            f"{metrics['residual_backward']}, samples not finite "
            f"{metrics['count_nonfinite']:.0f}, diverged {metrics['count_diverged']:.0f}.\n"
            "The parameters were not touched by these steps. Lower the learning rate, clip the "
            "gradient or raise gamma, in a new workdir; the last checkpoint is kept."
        )
