"""What passes between the parts: solutions, statuses, and what a solver and a gradient rule
provide.
"""

import abc
import dataclasses
import enum
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from jax import core
from jaxtyping import Array, Float, Int, PyTree

Map = Callable[[PyTree], PyTree]
"""``z -> f(z)``, at fixed params and x."""
ParamMap = Callable[[PyTree, PyTree, PyTree], PyTree]
"""``f(params, z, x) -> z``."""


def static_rule(value: Any) -> str:
    """What else an error has to say where an option is a traced value."""
    return " and static under jit (static_argnames)" if isinstance(value, core.Tracer) else ""


def require_integer(owner: str, name: str, value: Any, least: int) -> None:
    """Raise ValueError unless ``value`` is an integer >= ``least``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        static = static_rule(value)
        raise ValueError(f"{owner}: {name} must be an integer >= {least}{static}; got {value!r}")
    if value < least:
        raise ValueError(f"{owner}: {name} must be >= {least}; got {value}")


class Status(enum.IntEnum):
    """How the solve of one sample ended.

    CONVERGED: a finite, unclipped residual passed ``||f(z) - z|| <= atol + rtol ||f(z)||``.
    MAX_STEPS: the budget was spent, or the residual stagnated at the resolution of the dtype.
    NONFINITE: f, or the solver's next iterate, produced NaN or infinity.
    DIVERGED: the residual grew a million times beyond the scale of the first evaluation, and
      beyond 1e6.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    NONFINITE = 2
    DIVERGED = 3


class SolverStats(NamedTuple):
    """Per-sample statistics of a solve.

    Attributes:
      nfe: evaluations of f spent until the sample was done.
      residual: relative residual ``||f(z) - z|| / ||f(z)||`` of the returned z; infinity when no
        finite residual was seen. float64 for float64 states, else float32.
      status: a :class:`Status`.
    """

    nfe: Int[Array, " *batch"]
    residual: Float[Array, " *batch"]
    status: Int[Array, " *batch"]


class Solution(NamedTuple):
    """Result of :func:`jdeq.fixed_point`.

    Attributes:
      z: the state, with the structure, shapes and dtypes of z0.
      stats: per-sample statistics.
      trace: relative residual per step, NaN after a sample's end; None unless asked for.
    """

    z: PyTree
    stats: SolverStats
    trace: Float[Array, " max_steps *batch"] | None


class Solver(abc.ABC):
    """One method for ``z = f(z)``: a frozen dataclass of hyper-parameters with pure ``init`` and
    ``step``.

    A state is a NamedTuple with at least ``z``, where f was last evaluated, and ``fz = f(z)``.
    Per-sample leaves lead with the ``ndim`` batch axes, to which vmap adds its own. Stopping,
    freezing, the best iterate and statistics belong to :mod:`jdeq.iterate`.
    """

    causal: ClassVar[bool] = False
    """Whether a step treats each sample axis on its own, so that positions can be samples."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Fields of the state that go on for all when some samples are held, besides scalars."""
    mixes: ClassVar[bool] = False
    """Whether what a step does for a sample depends on the others in its batch."""

    @abc.abstractmethod
    def init(self, f: Map, z: PyTree, *, ndim: int) -> Any:
        """First state: one evaluation of f at z."""

    @abc.abstractmethod
    def step(self, f: Map, state: Any, *, ndim: int) -> Any:
        """Propose the next iterate and evaluate f there."""

    def cost(self, state: Any) -> int | Int[Array, " *batch"]:
        """Evaluations of f (and products with its Jacobian) that the latest ``init`` or ``step``
        took.
        """
        del state
        return 1


@dataclasses.dataclass(frozen=True)
class Problem:
    """The static half of a call of :func:`jdeq.fixed_point`: what a gradient rule needs besides
    arrays.
    """

    f: ParamMap
    solver: Solver
    rtol: float
    atol: float
    max_steps: int
    batch_ndim: int
    causal: bool
    trace: bool
    test_every: int
    smaller: tuple[tuple[int, ParamMap], ...] = ()  # fewer samples, and f for so many


class GradientRule(abc.ABC):
    """How a solution is differentiated: a frozen dataclass of hyper-parameters.

    ``exact`` says whether the derivative is that of the returned state (up to the tolerance);
    ``has_probe`` whether it runs a backward pass that reports.
    """

    exact: ClassVar[bool]
    has_probe: ClassVar[bool] = False

    @property
    def can_compact(self) -> bool:
        """Whether the solve may go on with a part of the samples."""
        return False

    @abc.abstractmethod
    def solve(
        self, problem: Problem, params: PyTree, z0: PyTree, x: PyTree, probe: Array | None
    ) -> Solution:
        """Solve, with this rule's derivative attached to the returned state."""

    def validate(self, solver: Solver) -> None:
        """Raise ValueError where this rule cannot work with that forward solver."""
        del solver
