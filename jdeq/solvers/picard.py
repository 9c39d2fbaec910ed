"""Damped Picard iteration."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import PyTree

from jdeq.types import Map, Solver


class PicardState(NamedTuple):
    z: PyTree  # float[*batch, ...]  where f was last evaluated
    fz: PyTree  # float[*batch, ...]  f(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Damped Picard iteration, ``z <- z + damping (f(z) - z)``.

    Converges locally when ``(1 - damping) I + damping J_f(z*)`` has spectral radius below 1.

    Args:
      damping: in (0, 1]; 1 is plain Picard.
    Raises:
      ValueError: when built, if ``damping`` lies outside (0, 1].
    Cost: one evaluation of f a step; two copies of z.
    Source: Mann (1953), Mean value methods in iteration, Proc. AMS 4, 506-510.
    """

    causal: ClassVar[bool] = True

    damping: float = 1.0

    def __post_init__(self):
        if not 0.0 < self.damping <= 1.0:
            raise ValueError(f"jdeq.Picard: damping must lie in (0, 1]; got {self.damping}")

    def init(self, f: Map, z: PyTree, *, ndim: int) -> PicardState:
        del ndim
        return PicardState(z, f(z))

    def step(self, f: Map, state: PicardState, *, ndim: int) -> PicardState:
        del ndim
        if self.damping == 1.0:
            z = state.fz
        else:
            z = jax.tree.map(lambda z, fz: z + self.damping * (fz - z), state.z, state.fz)
        return PicardState(z, f(z))
