"""The models of the DEQ papers."""

from jdeq.models.mdeq import MDEQ, MDEQCell
from jdeq.models.mdeq_config import MDEQ_CIFAR_LARGE, MDEQ_CIFAR_TINY, MDEQ_DIGITS, MDEQConfig

__all__ = [
    "MDEQ",
    "MDEQ_CIFAR_LARGE",
    "MDEQ_CIFAR_TINY",
    "MDEQ_DIGITS",
    "MDEQCell",
    "MDEQConfig",
]
