"""One step of training: pure, jitted."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jdeq.fixed_point import backward_probe
from jdeq.training.losses import LossFn, LossOutput
from jdeq.training.mesh import BATCH_AXES, Layout
from jdeq.training.state import TrainState
from jdeq.types import Status

PyTree = Any


class TrainStep(Protocol):
    """One update; ``penalize`` is static, so there are at most two compiled variants."""

    def __call__(
        self, state: TrainState, batch: Any, weight: float, *, penalize: bool
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]: ...


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    layout: Layout | None = None,
    local_stop: bool = False,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> TrainStep:
    """One update of ``loss_nats + weight * penalty``, jitted, the state donated.

    A step whose loss or gradient is not finite leaves parameters, model state and optimiser as
    they were and counts itself in ``skipped`` and ``skipped_in_row``; ``step`` advances always.

    Args:
      loss_fn: the task.
      optimizer: any optax transformation, clipping included; it may read the loss (``value``), as
        optax.contrib.reduce_on_plateau does.
      layout: where state and batch are, which `Layout.put` and `Layout.state` brought there; the
        new state stays so. Parameters are gathered once a step, before the solve, so that the
        only communication within one is its stop test. None: wherever they are.
      local_stop: each part of the batch is solved until its own samples are done, so that a solve
        communicates nothing; dropout and probes are drawn part by part. Not for models with batch
        statistics, which would be those of a part.
      compute_dtype: parameters and floating inputs are cast to it for loss and gradient
        (jnp.bfloat16); the state keeps its own. None: they are not.
    Raises:
      ValueError: if ``local_stop`` is asked for without a layout; when called, for a model with
        other state than a memory.
    Returns:
      ``step(state, batch, weight, *, penalize) -> (state, metrics)``. Metrics are scalars of this
      batch: loss_nats, accuracy (if known), penalty (if asked for), nfe_forward (mean),
      residual_mean, residual_max, one count for each `Status` (count_converged, ...), nfe_backward
      (mean) and residual_backward (largest) as the backward solve reported them, grad_norm (before
      clipping), count_skipped, learning_rate_scale (what optax.contrib.reduce_on_plateau has
      brought it to; else 1).
    """

    if local_stop and layout is None:
        raise ValueError("jdeq.training.make_train_step: local_stop needs a layout; got None")
    optimizer = optax.with_extra_args_support(optimizer)

    def differentiate(params, model_state, batch, key, weight, penalize, over=lambda count: (1, 1)):
        """The loss and what came with it, its gradient and the probe's; for a part of a batch what
        it adds to those of the whole, by the weights of its loss and of its penalty.
        """

        def objective(params, probe):
            out = loss_fn(
                _cast(params, compute_dtype),
                model_state,
                _cast(batch, compute_dtype),
                key=key,
                probe=probe,
                penalize=penalize,
            )
            of_loss, of_penalty = over(out.count)
            out = out._replace(
                loss_nats=of_loss * out.loss_nats,
                penalty=of_penalty * out.penalty,
                accuracy=None if out.accuracy is None else of_loss * out.accuracy,
            )
            return out.loss_nats + weight * out.penalty, out

        (_, out), (grads, probe) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
            params, backward_probe()
        )
        return out, grads, probe

    def by_parts(layout: Layout, params, model_state, batch, key, weight, penalize):
        if set(model_state) - {"memory"}:
            raise ValueError(
                "jdeq.training.make_train_step: local_stop must be False for a model with batch "
                "statistics or another state than a memory, which would be those of a part of the "
                f"batch; it has {sorted(model_state)}"
            )

        def over(count):
            total = jax.lax.psum(count, BATCH_AXES)
            return count / jnp.maximum(total, 1), 1 / layout.batch_parts

        def part(params, model_state, batch, key, weight):
            key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))
            out, grads, probe = differentiate(
                params, model_state, batch, key, weight, penalize, over
            )
            names = ("loss_nats", "penalty", "accuracy", "count")
            parts = {name: getattr(out, name) for name in names}
            summed, grads = jax.lax.psum((parts, grads), BATCH_AXES)
            mean, worst = jax.lax.pmean(probe[0], BATCH_AXES), jax.lax.pmax(probe[1], BATCH_AXES)
            return out._replace(**summed), grads, jnp.stack([mean, worst])

        rows, whole = jax.P(BATCH_AXES), jax.P()
        placed: Any = LossOutput
        return jax.shard_map(
            part,
            mesh=layout.mesh,
            axis_names=set(BATCH_AXES),
            in_specs=(whole, rows, rows, whole, whole),
            out_specs=(placed(whole, whole, whole, whole, rows, rows), whole, whole),
            check_vma=False,  # gradients are then those of a part, and summed once, above
        )(params, model_state, batch, key, weight)

    def step(state: TrainState, batch, weight, *, penalize):
        key = jax.random.fold_in(state.key, state.step)
        params = state.params if layout is None else layout.gathered(state.params)
        gradient = functools.partial(by_parts, layout) if layout and local_stop else differentiate
        out, grads, backward = gradient(params, state.model_state, batch, key, weight, penalize)
        total = out.loss_nats + weight * out.penalty
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
        if layout is not None:
            state = jax.lax.with_sharding_constraint(state, layout.state(state))
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


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """The floating leaves in another dtype."""
    if dtype is None:
        return tree

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def _learning_rate_scale(opt_state: optax.OptState) -> Float[Array, ""]:
    """Of optax.contrib.reduce_on_plateau, where it is part of the optimiser; else 1."""
    plateau = optax.contrib.ReduceLROnPlateauState
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, plateau))
    found = [part.scale for part in parts if isinstance(part, plateau)]
    return jnp.asarray(found[0] if found else 1.0, jnp.float32)
