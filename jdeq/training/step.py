"""One step of training and one of evaluation: pure, jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jdeq.data import Dataset
from jdeq.fixed_point import backward_probe
from jdeq.training.losses import LossFn, score, score_losses
from jdeq.training.state import TrainState
from jdeq.types import Status, require_integer

PyTree = Any


class TrainStep(Protocol):
    """One update; ``penalize`` is static, so there are at most two compiled variants."""

    def __call__(
        self, state: TrainState, batch: Any, weight: float, *, penalize: bool
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]: ...


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> TrainStep:
    """One update of ``loss_nats + weight * penalty``, jitted, the state donated.

    A step whose loss or gradient is not finite leaves parameters, model state and optimiser as
    they were and counts itself in ``skipped`` and ``skipped_in_row``; ``step`` advances always.

    Args:
      loss_fn: the task.
      optimizer: any optax transformation, clipping included; it may read the loss (``value``), as
        optax.contrib.reduce_on_plateau does.
    Returns:
      ``step(state, batch, weight, *, penalize) -> (state, metrics)``. Metrics are scalars of this
      batch: loss_nats, accuracy (if known), penalty (if asked for), nfe_forward (mean),
      residual_mean, residual_max, one count for each `Status` (count_converged, ...), nfe_backward
      (mean) and residual_backward (largest) as the backward solve reported them, grad_norm (before
      clipping), count_skipped, learning_rate_scale (what optax.contrib.reduce_on_plateau has
      brought it to; else 1).
    """

    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch, weight, *, penalize):
        key = jax.random.fold_in(state.key, state.step)

        def objective(params, probe):
            out = loss_fn(params, state.model_state, batch, key=key, probe=probe, penalize=penalize)
            return out.loss_nats + weight * out.penalty, out

        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (total, out), (grads, backward) = differentiate(state.params, backward_probe())
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=out.loss_nats
        )
        new = (optax.apply_updates(state.params, updates), out.model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        params, model_state, opt_state = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), new, old
        )
        state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            key=state.key,
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        )
        metrics = {
            "loss_nats": out.loss_nats,
            "nfe_forward": out.stats.nfe.mean(),
            "nfe_backward": backward[0],
            "residual_mean": out.stats.residual.mean(),
            "residual_max": out.stats.residual.max(),
            "residual_backward": backward[1],
            "grad_norm": grad_norm,
            "count_skipped": (~finite).astype(jnp.int32),
            "learning_rate_scale": _learning_rate_scale(opt_state),
        }
        if out.accuracy is not None:
            metrics["accuracy"] = out.accuracy
        for status in Status:
            metrics[f"count_{status.name.lower()}"] = (out.stats.status == status).sum()
        if penalize:
            metrics["penalty"] = out.penalty
        return state, metrics

    return jax.jit(step, static_argnames="penalize", donate_argnums=0)


def _learning_rate_scale(opt_state: optax.OptState) -> Float[Array, ""]:
    """Of optax.contrib.reduce_on_plateau, where it is part of the optimiser; else 1."""
    plateau = optax.contrib.ReduceLROnPlateauState
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, plateau))
    found = [part.scale for part in parts if isinstance(part, plateau)]
    return jnp.asarray(found[0] if found else 1.0, jnp.float32)


class Evaluation(NamedTuple):
    """One entry a label for the first four; one a sample, or a position where the model solves
    causally, for the others.
    """

    loss_nats: Float[Array, " *labels"]
    correct: Bool[Array, " *labels"] | None  # None where the model gives losses only
    counted: Bool[Array, " *labels"]  # False where the label is IGNORED
    predicted: Int[Array, " *labels"] | None
    nfe: Int[Array, " *samples"]
    residual: Float[Array, " *samples"]
    status: Int[Array, " *samples"]


EvalStep = Callable[[dict[str, PyTree], Dataset], Evaluation]


def make_eval_step(
    model: nn.Module, *, segment: int | None = None, by_labels: bool = False
) -> EvalStep:
    """``step(variables, batch) -> Evaluation``, jitted; no dropout, running averages.

    Args:
      model: called as ``model(inputs) -> (logits, solution)``.
      segment: a sequence model reads the inputs [batch, length] so many positions at a time, with
        what it keeps of one in its collection "memory" for the next, and nothing before the first;
        divides ``length``. None: all at once and without memory.
      by_labels: as of `cross_entropy_loss`.
    Raises:
      ValueError: if ``segment`` is no integer >= 1; when called, if it does not divide the length.
    """
    if segment is not None:
        require_integer("jdeq.training.make_eval_step", "segment", segment, 1)

    def call(variables, inputs, labels, **options) -> Any:
        given = {"labels": labels} if by_labels else {}
        return model.apply(variables, inputs, **given, **options)

    def judge(outputs: Any, labels: Array) -> Evaluation:
        out, solution = outputs
        stats = solution.stats
        return Evaluation(
            **(score_losses if by_labels else score)(out, labels)._asdict(),
            nfe=stats.nfe,
            residual=stats.residual,
            status=stats.status,
        )

    def whole(variables, batch):
        labels = jnp.asarray(batch.labels)
        return judge(call(variables, batch.inputs, labels), labels)

    if segment is None:
        return jax.jit(whole)

    def by_segment(variables, batch):
        variables = {name: value for name, value in variables.items() if name != "memory"}
        inputs, labels = (_segments(leaf, segment) for leaf in batch)

        def read(memory, part):
            known = variables | ({"memory": memory} if memory else {})
            outputs, kept = call(known, *part, mutable=["memory"])
            return kept.get("memory", {}), judge(outputs, part[1])

        shapes, _ = jax.eval_shape(read, {}, (inputs[0], labels[0]))
        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        _, parts = jax.lax.scan(read, empty, (inputs, labels))
        return jax.tree.map(lambda a: jnp.concatenate(list(jnp.atleast_3d(a)), axis=1), parts)

    return jax.jit(by_segment)


def _segments(a: Int[Array, "batch length"], segment: int) -> Int[Array, "segments batch segment"]:
    if a.shape[1] % segment:
        raise ValueError(
            f"jdeq.training.make_eval_step: segment must divide the length of the inputs "
            f"({a.shape[1]}); got {segment}"
        )
    return jnp.moveaxis(jnp.asarray(a).reshape(len(a), -1, segment), 1, 0)
