"""A whole data set through the evaluation step."""

from typing import Any

import jax
import numpy as np

from jdeq.data import Dataset, padded_batches
from jdeq.training.step import EvalStep
from jdeq.types import Status


def evaluate(
    step: EvalStep, variables: dict[str, Any], data: Dataset, *, batch_size: int
) -> dict[str, float]:
    """Means over all labels but ignored ones, and over all samples, of ``data``.

    Args:
      step: from `make_eval_step`.
      variables: params and the other collections.
      data: any number of examples.
      batch_size: examples in one call; the last batch is filled up, and the filling dropped
        (samples do not affect one another).
    Returns:
      loss_nats, accuracy, nfe_forward, residual_mean, residual_max, and the share of the samples
      that converged.
    """
    parts = []
    for batch, count in padded_batches(data, batch_size=batch_size):
        parts.append(jax.tree.map(lambda a, n=count: np.asarray(a)[:n], step(variables, batch)))
    every = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    if every.nfe.shape == every.counted.shape:  # a causal solve: one entry a position
        solved = jax.tree.map(lambda a: a[every.counted], every)
    else:
        solved = every
    return {
        "loss_nats": float(every.loss_nats[every.counted].mean()),
        "accuracy": float(every.correct[every.counted].mean()),
        "nfe_forward": float(solved.nfe.mean()),
        "residual_mean": float(solved.residual.mean()),
        "residual_max": float(solved.residual.max()),
        "converged": float((solved.status == Status.CONVERGED).mean()),
    }
