"""What models that solve nothing return in place of a solve."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from jdeq.types import Solution, SolverStats, Status


def explicit_solution(z: Array, *, ndim: int = 1, nfe: int = 1) -> Solution:
    """The output of layers that were evaluated, not solved, in the form of a solve: ``nfe``
    evaluations, residual 0, CONVERGED for each sample, which the first ``ndim`` axes index.
    """
    samples = z.shape[:ndim]
    stats = SolverStats(
        nfe=jnp.full(samples, nfe, jnp.int32),
        residual=jnp.zeros(samples, jnp.promote_types(z.dtype, jnp.float32)),
        status=jnp.full(samples, Status.CONVERGED, jnp.int32),
    )
    return Solution(z, stats, None)
