"""The models of the DEQ papers."""

from jdeq.models.lstm import LSTM, LSTMConfig
from jdeq.models.mdeq import MDEQ, MDEQCell
from jdeq.models.mdeq_config import MDEQ_CIFAR_LARGE, MDEQ_CIFAR_TINY, MDEQ_DIGITS, MDEQConfig
from jdeq.models.mondeq import (
    MONDEQ_CIFAR_MULTI,
    MONDEQ_CIFAR_MULTI_LARGE,
    MONDEQ_CIFAR_SINGLE,
    MONDEQ_CIFAR_SINGLE_LARGE,
    MONDEQ_MNIST_DENSE,
    MonDEQ,
    MonDEQConfig,
    largest_step,
    tune_step,
)
from jdeq.models.revdeq import REVDEQ_CIFAR, REVDEQ_SMALL, RevDEQ, RevDEQCell, RevDEQConfig
from jdeq.models.revdeq_lm import REVDEQ_WIKITEXT103, RevDEQLM, RevDEQLMCell, RevDEQLMConfig
from jdeq.models.trellis import (
    TRELLIS_PTB,
    TRELLIS_WIKITEXT103,
    DEQTrellisNet,
    TrellisCell,
    TrellisConfig,
    trellis_net,
)

__all__ = [
    "MDEQ",
    "MDEQ_CIFAR_LARGE",
    "MDEQ_CIFAR_TINY",
    "MDEQ_DIGITS",
    "MDEQCell",
    "MDEQConfig",
    "MONDEQ_CIFAR_MULTI",
    "MONDEQ_CIFAR_MULTI_LARGE",
    "MONDEQ_CIFAR_SINGLE",
    "MONDEQ_CIFAR_SINGLE_LARGE",
    "MONDEQ_MNIST_DENSE",
    "MonDEQ",
    "MonDEQConfig",
    "REVDEQ_CIFAR",
    "REVDEQ_SMALL",
    "REVDEQ_WIKITEXT103",
    "RevDEQ",
    "RevDEQCell",
    "RevDEQConfig",
    "RevDEQLM",
    "RevDEQLMCell",
    "RevDEQLMConfig",
    "largest_step",
    "tune_step",
    "LSTM",
    "LSTMConfig",
    "TRELLIS_PTB",
    "TRELLIS_WIKITEXT103",
    "DEQTrellisNet",
    "TrellisCell",
    "TrellisConfig",
    "trellis_net",
]
