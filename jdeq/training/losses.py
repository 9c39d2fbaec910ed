"""What a model is trained for: one function a task, from parameters and a batch to a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jdeq.data import IGNORED, Dataset
from jdeq.types import SolverStats

PyTree = Any


class LossOutput(NamedTuple):
    """A loss and what came with it.

    Attributes:
      loss_nats: float[], mean over the batch, without the penalty.
      penalty: float[], mean Jacobian penalty, before its weight; 0 if not asked for.
      accuracy: float[]; None where the model gives losses only.
      count: int[], labels that the loss is the mean of.
      stats: of the forward solve, one entry a sample.
      model_state: the collections after the call.
    """

    loss_nats: Float[Array, ""]
    penalty: Float[Array, ""]
    accuracy: Float[Array, ""] | None
    count: Int[Array, ""]
    stats: SolverStats
    model_state: dict[str, PyTree]


class LossFn(Protocol):
    """A task: pure, and static in ``penalize``."""

    def __call__(
        self,
        params: PyTree,
        model_state: dict[str, PyTree],
        batch: Any,
        *,
        key: Key[Array, ""],
        probe: Float[Array, " 2"],
        penalize: bool,
    ) -> LossOutput: ...


def cross_entropy_loss(
    model: nn.Module, *, probe_backward: bool = True, by_labels: bool = False
) -> LossFn:
    """Mean cross entropy of the labels in nats, and the model's mean Jacobian penalty,
    ``mean ||eps^T J||^2 / d``.

    Args:
      model: called as ``model(inputs, train=True, probe=probe) -> (logits, solution)``, with logits
        for every label; each
        `jdeq.linen.DEQ` in it sows its penalty when given an rng stream "jacobian". The penalties
        of several are added.
      probe_backward: hand the probe on to the model; False for a gradient rule without a backward
        solve to report on (``rule.has_probe``).
      by_labels: the model is called with ``labels=`` and gives their losses in place of logits, as
        those do whose vocabulary is too large for logits; there is no accuracy then.
    Returns:
      a `LossFn` over batches of `jdeq.data.Dataset`.
    Cost: the penalty takes one evaluation of the cell and one vector product, and their backward.
    Source: Bai, Koltun, Kolter (2021), Stabilizing Equilibrium Models by Jacobian Regularization,
      eq. 7.
    """

    judge = score_losses if by_labels else score
    return _loss_fn(model, judge, probe_backward=probe_backward, by_labels=by_labels)


def squared_error_loss(model: nn.Module, *, probe_backward: bool = True) -> LossFn:
    """Mean ``(output - label)^2``, and the model's mean Jacobian penalty.

    In nats, as every loss here: that of a Gaussian of variance 1/2, without its constant.

    Args:
      model: called as ``model(inputs, train=True, probe=probe) -> (outputs, solution)``, with one
        number for every label; its penalty as for `cross_entropy_loss`.
      probe_backward: as of `cross_entropy_loss`.
    Returns:
      a `LossFn` over batches of `jdeq.data.Dataset` whose labels are numbers.
    """
    return _loss_fn(model, score_numbers, probe_backward=probe_backward, by_labels=False)


def _loss_fn(
    model: nn.Module, judge: Callable[..., "Scores"], *, probe_backward: bool, by_labels: bool
) -> LossFn:
    def loss(params, model_state, batch: Dataset, *, key, probe, penalize):
        dropout_key, jacobian_key = jax.random.split(key)
        rngs = {"dropout": dropout_key} | ({"jacobian": jacobian_key} if penalize else {})
        labels = jnp.asarray(batch.labels)
        options: dict[str, Any] = {"labels": labels} if by_labels else {}
        outputs: Any = model.apply(
            {"params": params, **model_state},
            batch.inputs,
            train=True,
            probe=probe if probe_backward else None,
            mutable=["jdeq", *model_state],
            rngs=rngs,
            **options,
        )
        (out, solution), updated = outputs
        scores = judge(out, labels)
        count = jnp.maximum(scores.counted.sum(), 1)
        return LossOutput(
            loss_nats=scores.loss_nats.sum() / count,
            penalty=_penalty(updated) if penalize else jnp.zeros((), scores.loss_nats.dtype),
            accuracy=None if scores.correct is None else scores.correct.sum() / count,
            count=scores.counted.sum(),
            stats=solution.stats,
            model_state={name: updated[name] for name in model_state},
        )

    return loss


class Scores(NamedTuple):
    """One entry a label; no loss and not correct where the label is `jdeq.data.IGNORED`."""

    loss_nats: Float[Array, " *labels"]
    correct: Bool[Array, " *labels"] | None  # None where there are losses only
    counted: Bool[Array, " *labels"]
    predicted: Int[Array, " *labels"] | None  # the class of the largest logit, counted or not


def score(logits: Float[Array, "*labels classes"], labels: Int[Array, " *labels"]) -> Scores:
    """Cross entropy and whether the largest logit is the label's, label by label; NaN for a label
    that is neither a class nor `jdeq.data.IGNORED`.
    """
    counted, known = labels != IGNORED, (labels >= 0) & (labels < logits.shape[-1])
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    losses = jnp.where(known, losses, jnp.where(counted, jnp.nan, 0.0))
    predicted = logits.argmax(-1)
    return Scores(losses, counted & (predicted == labels), counted, predicted)


def score_losses(losses: Float[Array, " *labels"], labels: Int[Array, " *labels"]) -> Scores:
    """The same of losses that a model gives itself, which takes any negative label for none."""
    counted = labels != IGNORED
    losses = jnp.where(labels >= 0, losses, jnp.where(counted, jnp.nan, 0.0))
    return Scores(losses, None, counted, None)


def score_numbers(outputs: Float[Array, " *labels"], labels: Float[Array, " *labels"]) -> Scores:
    """Squared errors of numbers; every label counts.

    Raises:
      ValueError: if there are not as many outputs as labels.
    """
    if outputs.shape != labels.shape:
        raise ValueError(
            "jdeq.training.squared_error_loss: outputs must have the shape of the labels, "
            f"{labels.shape}; got {outputs.shape}"
        )
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    return Scores(jnp.square(outputs - labels), None, jnp.ones(labels.shape, bool), None)


def _penalty(updated: dict[str, PyTree]) -> Float[Array, ""]:
    sown = jax.tree_util.tree_leaves_with_path(updated.get("jdeq", {}))
    found = [
        leaf.mean() for path, leaf in sown if "'jacobian_penalty'" in jax.tree_util.keystr(path)
    ]
    if not found:
        raise ValueError(
            "jdeq.training: penalize needs a jdeq.linen.DEQ in the model, "
            "which sows 'jacobian_penalty' into the collection 'jdeq'; found none"
        )
    return jnp.sum(jnp.stack(found))
