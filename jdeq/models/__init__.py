"""The models of the DEQ papers."""

from jdeq.models.decoder_lm import DECODER_DEQ_BYTES, DecoderCell, DecoderDEQConfig, DecoderDEQLM
from jdeq.models.deq_transformer import DEQTransformerCell, DEQTransformerLM, Injection
from jdeq.models.deq_transformer_config import (
    DEQ_TRANSFORMER_WIKITEXT103,
    DEQ_TRANSFORMER_WIKITEXT103_JR,
    TRANSFORMER_XL_WIKITEXT103,
    DEQTransformerConfig,
    TransformerXLConfig,
)
from jdeq.models.lstm import LSTM, LSTMConfig
from jdeq.models.mdeq import MDEQ, MDEQCell
from jdeq.models.mdeq_config import (
    MDEQ_CIFAR_LARGE,
    MDEQ_CIFAR_TINY,
    MDEQ_CITYSCAPES_LARGE,
    MDEQ_CITYSCAPES_SMALL,
    MDEQ_CITYSCAPES_XL,
    MDEQ_DIGITS,
    MDEQ_IMAGENET_LARGE,
    MDEQ_IMAGENET_LARGE_JR,
    MDEQ_IMAGENET_SMALL,
    MDEQ_IMAGENET_SMALL_JR,
    MDEQ_IMAGENET_XL,
    MDEQConfig,
    MDEQSegmenterConfig,
)
from jdeq.models.mdeq_segmenter import MDEQSegmenter
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
from jdeq.models.transformer_xl import TransformerXL
from jdeq.models.trellis import (
    TRELLIS_PTB,
    TRELLIS_WIKITEXT103,
    DEQTrellisNet,
    TrellisCell,
    TrellisConfig,
    trellis_net,
)

__all__ = [
    "DECODER_DEQ_BYTES",
    "DEQTransformerCell",
    "DEQTransformerConfig",
    "DEQTransformerLM",
    "DEQTrellisNet",
    "DEQ_TRANSFORMER_WIKITEXT103",
    "DEQ_TRANSFORMER_WIKITEXT103_JR",
    "DecoderCell",
    "DecoderDEQConfig",
    "DecoderDEQLM",
    "Injection",
    "LSTM",
    "LSTMConfig",
    "MDEQ",
    "MDEQCell",
    "MDEQConfig",
    "MDEQSegmenter",
    "MDEQSegmenterConfig",
    "MDEQ_CIFAR_LARGE",
    "MDEQ_CIFAR_TINY",
    "MDEQ_CITYSCAPES_LARGE",
    "MDEQ_CITYSCAPES_SMALL",
    "MDEQ_CITYSCAPES_XL",
    "MDEQ_DIGITS",
    "MDEQ_IMAGENET_LARGE",
    "MDEQ_IMAGENET_LARGE_JR",
    "MDEQ_IMAGENET_SMALL",
    "MDEQ_IMAGENET_SMALL_JR",
    "MDEQ_IMAGENET_XL",
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
    "TRANSFORMER_XL_WIKITEXT103",
    "TRELLIS_PTB",
    "TRELLIS_WIKITEXT103",
    "TransformerXL",
    "TransformerXLConfig",
    "TrellisCell",
    "TrellisConfig",
    "largest_step",
    "trellis_net",
    "tune_step",
]
