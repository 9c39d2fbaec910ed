"""Deep equilibrium models for JAX and Flax."""

from jdeq.diagnostics import propose_beta, spectral_radius
from jdeq.fixed_point import backward_probe, check, fixed_point
from jdeq.gradients import (
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    ReversibleGradient,
    SharedInverse,
    Unrolled,
)
from jdeq.regularizers import JacobianSchedule, fixed_point_correction, jacobian_penalty
from jdeq.solvers import (
    Anderson,
    Broyden,
    NewtonKrylov,
    Picard,
    RestartedAnderson,
    Reversible,
)
from jdeq.types import Solution, SolverStats, Status

__all__ = [
    "Anderson",
    "Broyden",
    "Implicit",
    "JacobianSchedule",
    "Neumann",
    "NewtonKrylov",
    "OneStep",
    "Phantom",
    "Picard",
    "RestartedAnderson",
    "Reversible",
    "ReversibleGradient",
    "SharedInverse",
    "Solution",
    "SolverStats",
    "Status",
    "Unrolled",
    "backward_probe",
    "check",
    "fixed_point",
    "fixed_point_correction",
    "jacobian_penalty",
    "propose_beta",
    "spectral_radius",
]
