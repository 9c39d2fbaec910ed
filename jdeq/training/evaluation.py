"""A whole data set through the evaluation step, and scores of classes."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jdeq.data import IGNORED, Dataset, OrderedImageBatches, padded_batches, prefetched
from jdeq.training.eval_step import EvalStep, Evaluation
from jdeq.types import Status, require_integer


def evaluate(
    step: EvalStep,
    variables: dict[str, Any],
    data: Dataset | OrderedImageBatches,
    *,
    batch_size: int | None = None,
    classes: int | None = None,
) -> dict[str, float]:
    """Means over all labels but ignored ones, and over all samples, of ``data``.

    Args:
      step: from `make_eval_step`.
      variables: params and the other collections.
      data: one example or more; or batches that are read on the way, which have their own size.
      batch_size: examples in one call, >= 1, of a Dataset; the last batch is filled up, and the
        filling dropped (samples do not affect one another). None for batches with their own size.
      classes: of labels that are pictures, scored by `mean_iou`; None: the labels are not.
    Returns:
      loss_nats, accuracy (if the step knows it), nfe_forward, residual_mean, residual_max, the
      share of the samples that converged, and mean_iou if ``classes`` is given.
    Raises:
      ValueError: if ``data`` is empty, if ``batch_size`` does not go with it, or if ``classes`` is
        given and the step gives no predictions.
    Cost: one batch of results is held at a time.
    """
    if isinstance(data, OrderedImageBatches):
        if batch_size is not None:
            raise ValueError(
                "jdeq.training.evaluate: batch_size must be None for batches with a size of their "
                f"own; got {batch_size}"
            )
    elif batch_size is None:
        raise ValueError("jdeq.training.evaluate: batch_size must be given for a Dataset; got None")
    else:
        require_integer("jdeq.training.evaluate", "batch_size", batch_size, 1)
    if not isinstance(data, OrderedImageBatches) and not len(data.labels):
        raise ValueError("jdeq.training.evaluate: data must have an example; got none")
    sums = dict.fromkeys(("loss", "correct", "labels", "nfe", "residual", "converged"), 0.0)
    samples, largest = 0, 0.0
    confusion = np.zeros((classes or 0,) * 2, np.int64)
    for out, labels in _results(step, variables, data, batch_size):
        nfe, residual, status = out.nfe, out.residual, out.status
        if nfe.shape == out.counted.shape:  # a causal solve has one entry a position
            nfe, residual, status = (a[out.counted] for a in (nfe, residual, status))
        sums["loss"] += out.loss_nats[out.counted].sum(dtype=np.float64)
        if out.correct is not None:
            sums["correct"] += out.correct[out.counted].sum()
        sums["labels"] += out.counted.sum()
        sums["nfe"] += nfe.sum(dtype=np.float64)
        sums["residual"] += residual.sum(dtype=np.float64)
        sums["converged"] += (status == Status.CONVERGED).sum()
        samples += nfe.size
        largest = np.max(residual, initial=largest)  # NaN where one is
        if classes is not None:
            if out.predicted is None:
                raise ValueError(
                    "jdeq.training.evaluate: classes must be None for a step without predictions; "
                    f"got {classes}"
                )
            confusion += confusion_matrix(labels, out.predicted, classes)
    means = {"loss_nats": float(sums["loss"] / sums["labels"])}
    if out.correct is not None:
        means["accuracy"] = float(sums["correct"] / sums["labels"])
    means |= {
        "nfe_forward": float(sums["nfe"] / samples),
        "residual_mean": float(sums["residual"] / samples),
        "residual_max": float(largest),
        "converged": float(sums["converged"] / samples),
    }
    return means if classes is None else means | {"mean_iou": mean_iou(confusion)}


def evaluate_samples(
    step: EvalStep, variables: dict[str, Any], data: Dataset, *, batch_size: int
) -> Evaluation:
    """The results of every example of ``data``, in order, held in memory."""
    parts = [out for out, _ in _results(step, variables, data, batch_size)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def confusion_matrix(
    labels: Int[np.ndarray, " *labels"], predicted: Int[np.ndarray, " *labels"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How many labels of the row's class were predicted as the column's; without ignored ones.

    Raises:
      ValueError: if the shapes differ, the dtypes are not those of integers, ``classes`` is below
        1, or another label or prediction lies outside 0..classes - 1.
    """
    who = "jdeq.training.confusion_matrix"
    require_integer(who, "classes", classes, 1)
    if predicted.shape != labels.shape:
        raise ValueError(
            f"{who}: predicted must have the shape of labels, {labels.shape}; got {predicted.shape}"
        )
    for name, values in (("labels", labels), ("predicted", predicted)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{who}: {name} must be integers; got {values.dtype}")
    labels, predicted = (a[labels != IGNORED].astype(np.int64) for a in (labels, predicted))
    for name, values in (("labels", labels), ("predicted", predicted)):
        outside = values[(values < 0) | (values >= classes)]
        if len(outside):
            raise ValueError(f"{who}: {name} must lie in 0..{classes - 1}; got {outside[0]}")
    counts = np.bincount(classes * labels + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def mean_iou(confusion: Int[np.ndarray, "classes classes"]) -> float:
    """Intersection over union, ``c_kk / (row_k + column_k - c_kk)``, averaged over the classes k
    that are among labels or predictions; NaN if none is.

    Source: Everingham et al. (2015), The Pascal Visual Object Classes Challenge: A Retrospective,
      section 2.3; as Cityscapes scores it, over all images at once. Its own script leaves out a
      class that is nowhere, as here; the published code of the multiscale DEQ counts it as 0.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")


def _results(
    step: EvalStep,
    variables: dict[str, Any],
    data: Dataset | OrderedImageBatches,
    batch_size: int | None,
) -> Iterable[tuple[Any, np.ndarray]]:
    """The results of each batch as numpy arrays, and its labels; what fills it up is cut off."""
    if isinstance(data, OrderedImageBatches):
        batches = prefetched(data, stop=len(data))
    else:
        batches = padded_batches(data, batch_size=batch_size or len(data.labels))
    for batch, count in batches:
        out = jax.tree.map(lambda a, n=count: np.asarray(a)[:n], step(variables, batch))
        yield out, batch.labels[:count]
