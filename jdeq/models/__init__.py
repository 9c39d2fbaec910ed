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
from jdeq.models.mdeq import MDEQ, MDEQCell
from jdeq.models.mdeq_config import MDEQ_CIFAR_LARGE, MDEQ_CIFAR_TINY, MDEQ_DIGITS, MDEQConfig
from jdeq.models.revdeq import REVDEQ_CIFAR, REVDEQ_SMALL, RevDEQ, RevDEQCell, RevDEQConfig
from jdeq.models.revdeq_lm import REVDEQ_WIKITEXT103, RevDEQLM, RevDEQLMCell, RevDEQLMConfig
from jdeq.models.transformer_xl import TransformerXL

__all__ = [
    "DECODER_DEQ_BYTES",
    "DEQ_TRANSFORMER_WIKITEXT103",
    "DEQ_TRANSFORMER_WIKITEXT103_JR",
    "DEQTransformerCell",
    "DEQTransformerConfig",
    "DEQTransformerLM",
    "DecoderCell",
    "DecoderDEQConfig",
    "DecoderDEQLM",
    "Injection",
    "MDEQ",
    "MDEQ_CIFAR_LARGE",
    "MDEQ_CIFAR_TINY",
    "MDEQ_DIGITS",
    "MDEQCell",
    "MDEQConfig",
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
    "TransformerXL",
    "TransformerXLConfig",
]
