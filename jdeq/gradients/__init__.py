"""Gradient rules, one per file."""

from jdeq.gradients.implicit import Implicit
from jdeq.gradients.neumann import Neumann
from jdeq.gradients.one_step import OneStep
from jdeq.gradients.phantom import Phantom
from jdeq.gradients.reversible import ReversibleGradient
from jdeq.gradients.shared_inverse import SharedInverse
from jdeq.gradients.unrolled import Unrolled

__all__ = [
    "Implicit",
    "Neumann",
    "OneStep",
    "Phantom",
    "ReversibleGradient",
    "SharedInverse",
    "Unrolled",
]
