"""One step of evaluation: pure, jitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jdeq.data import Dataset
from jdeq.training.losses import score, score_losses, score_numbers
from jdeq.training.mesh import Layout
from jdeq.types import require_integer

PyTree = Any


class Evaluation(NamedTuple):
    """What a batch gives under a model.

    Attributes:
      loss_nats: float[*labels], of each label.
      correct: bool[*labels]; None where the model gives losses only.
      counted: bool[*labels], False where the label is `jdeq.data.IGNORED`.
      predicted: int[*labels], the most probable label; None where ``correct`` is.
      nfe, residual, status: [*samples], as in `jdeq.SolverStats`; one entry a sample, or a position
        where the model solves causally.
    """

    loss_nats: Float[Array, " *labels"]
    correct: Bool[Array, " *labels"] | None
    counted: Bool[Array, " *labels"]
    predicted: Int[Array, " *labels"] | None
    nfe: Int[Array, " *samples"]
    residual: Float[Array, " *samples"]
    status: Int[Array, " *samples"]


EvalStep = Callable[[dict[str, PyTree], Dataset], Evaluation]
"""``(variables, batch) -> Evaluation``."""


def make_eval_step(
    model: nn.Module,
    *,
    segment: int | None = None,
    by_labels: bool = False,
    squared_error: bool = False,
    layout: Layout | None = None,
) -> EvalStep:
    """``step(variables, batch) -> Evaluation``, jitted; no dropout, running averages.

    Args:
      model: called as ``model(inputs) -> (logits, solution)``.
      segment: a sequence model reads the inputs [batch, length] so many positions at a time, with
        what it keeps of one in its collection "memory" for the next, and nothing before the first;
        divides ``length``. None: all at once and without memory.
      by_labels: as of `cross_entropy_loss`.
      squared_error: labels are numbers, and the loss is that of `squared_error_loss`.
      layout: as of `make_train_step`. The batch, whole in every process, is split where its rows
        divide; the results come out whole.
    Raises:
      ValueError: if ``segment`` is no integer >= 1, or losses by labels are to be squared errors;
        when called, if it does not divide the length.
    """
    if by_labels and squared_error:
        raise ValueError(
            "jdeq.training.make_eval_step: squared_error must be False with by_labels; got True"
        )
    scored = score_numbers if squared_error else score_losses if by_labels else score
    if segment is not None:
        require_integer("jdeq.training.make_eval_step", "segment", segment, 1)

    def call(variables, inputs, labels, **options) -> Any:
        given = {"labels": labels} if by_labels else {}
        return model.apply(variables, inputs, **given, **options)

    def judge(outputs: Any, labels: Array) -> Evaluation:
        out, solution = outputs
        stats = solution.stats
        return Evaluation(
            **scored(out, labels)._asdict(),
            nfe=stats.nfe,
            residual=stats.residual,
            status=stats.status,
        )

    def whole(variables, batch):
        labels = jnp.asarray(batch.labels)
        return judge(call(variables, batch.inputs, labels), labels)

    def jitted(evaluate, layout: Layout | None = layout):
        if layout is None:
            return jax.jit(evaluate)

        def spread(variables, batch):
            params = layout.gathered(variables["params"])
            if len(batch.labels) % layout.batch_parts == 0:
                batch = jax.lax.with_sharding_constraint(batch, layout.batch)
            return evaluate({**variables, "params": params}, batch)

        return jax.jit(spread, out_shardings=layout.replicated)

    if segment is None:
        return jitted(whole)

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

    return jitted(by_segment)


def _segments(a: Int[Array, "batch length"], segment: int) -> Int[Array, "segments batch segment"]:
    if a.shape[1] % segment:
        raise ValueError(
            f"jdeq.training.make_eval_step: segment must divide the length of the inputs "
            f"({a.shape[1]}); got {segment}"
        )
    return jnp.moveaxis(jnp.asarray(a).reshape(len(a), -1, segment), 1, 0)
