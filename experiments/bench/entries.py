"""What an entry of the solver table is, and the hand-written one.

An entry builds ``solve(f, params, z0, x) -> (z, steps)``, given the relative tolerance and ||z*||
of the whole batch: some peers only know an absolute tolerance. ``steps`` is the library's count.
"""

import dataclasses
from collections.abc import Callable

from experiments.bench.picard import picard

MAX_STEPS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A way to solve: ``build(rtol, norm)`` returns ``solve(f, params, z0, x) -> (z, steps)``."""

    name: str
    build: Callable[[float, float], Callable]


def hand_written() -> Entry:
    """The reference."""

    def build(rtol, norm):
        return lambda f, params, z0, x: (picard(f, params, z0, x, rtol, MAX_STEPS), ())

    return Entry(name="hand-written Picard", build=build)
