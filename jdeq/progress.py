"""How far a solve is, and its part for some of the samples."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from jdeq import tree

RUNNING = -1
"""The status of a sample that is not done."""
RESULTS = ("z", "residual", "nfe", "status", "trace")


# So many steps in which no residual was 1% below the smallest of before, all within so many times
# what the dtype resolves, end a solve to a tolerance below that.
_PATIENCE, _ROUNDING = 6, 100


class Stale(NamedTuple):
    """Progress near the resolution of the dtype, where a solve ends for want of it."""

    mark: Float[Array, " *batch"]  # the residual that it is counted from
    steps: Int[Array, " *batch"]  # that it was not made in

    def after(self, relative: Float[Array, " *batch"], resolution: float) -> "Stale":
        """Of a solve that came to these relative residuals."""
        better = relative < 0.99 * self.mark
        still = ~better & (relative < _ROUNDING * resolution)
        return Stale(jnp.where(better, relative, self.mark), jnp.where(still, self.steps + 1, 0))

    @property
    def spent(self) -> Bool[Array, " *batch"]:
        """Whether that is the end."""
        return self.steps >= _PATIENCE


class Progress(NamedTuple):
    """What the loop carries: the solver's state, and of every sample how far it is."""

    step: Int[Array, ""]  # init or solver steps taken
    state: Any  # the solver's
    z: PyTree  # the iterate to return
    residual: Float[Array, " *batch"]  # its relative residual
    nfe: Int[Array, " *batch"]
    status: Int[Array, " *batch"]  # a Status, or RUNNING
    scale: Float[Array, " *batch"]  # a power of 2 that suits the squares of the latest norms
    # 0: none is running; 1: some are, all scales 1; 2: one has another scale; None: not kept
    load: UInt8[Array, ""] | None
    reference: Float[Array, " *batch"]  # what the residual is small or large against
    stale: Stale | None  # None: not kept
    trace: Float[Array, " max_steps *batch"] | None


def of_samples(running: Array) -> Array:
    """Whether any part of it is running, for each entry of the first sample axis."""
    return jnp.any(running, axis=tuple(range(1, running.ndim)))


def take_rows(p: Progress, rows: Array, ndim: int) -> Progress:
    """The entries ``rows`` of the first sample axis."""
    trace = None if p.trace is None else p.trace[:, rows]
    return tree.take(p._replace(trace=None), rows, ndim)._replace(trace=trace)


def returned(p: Progress) -> tuple:
    """What is to be returned of it."""
    return tuple(getattr(p, name) for name in RESULTS)


def put_rows(results: tuple, rows: Array, part: tuple, ndim: int) -> tuple:
    """``results``, of the entries ``rows`` those of ``part``."""
    *per_sample, trace = results
    *new, new_trace = part
    trace = None if trace is None else trace.at[:, rows].set(new_trace)
    return *tree.put(per_sample, rows, new, ndim), trace


def empty_trace(residual: Array, max_steps: int) -> Array:
    """Room for the residuals of every step, NaN."""
    return jnp.full_like(jnp.repeat(residual[None], max_steps, axis=0), jnp.nan)
