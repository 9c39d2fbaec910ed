"""The models of the DEQ papers."""

from jdeq.models.decoder_lm import (
    DECODER_DEQ_BYTES,
    DecoderCell,
    DecoderDEQConfig,
    DecoderDEQLM,
    DecoderInjection,
)
from jdeq.models.densenet import (
    DENSENET121_CIFAR,
    DENSENET121_IMAGENET,
    DenseNet,
    DenseNetConfig,
)
from jdeq.models.deq_transformer import DEQTransformerCell, DEQTransformerLM, Injection
from jdeq.models.deq_transformer_config import (
    DEQ_TRANSFORMER_WIKITEXT103,
    DEQ_TRANSFORMER_WIKITEXT103_JR,
    TRANSFORMER_XL_WIKITEXT103,
    DEQTransformerConfig,
    TransformerXLConfig,
)
from jdeq.models.deq_vit import DEQViT, DEQViTCell, DEQViTConfig
from jdeq.models.generation import Generated, Sampling, generate
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
from jdeq.models.resnet import (
    RESNET18_CIFAR,
    RESNET18_IMAGENET,
    RESNET50_IMAGENET,
    RESNET101_CIFAR,
    RESNET101_IMAGENET,
    ResNet,
    ResNetConfig,
)
from jdeq.models.revdeq import REVDEQ_CIFAR, REVDEQ_SMALL, RevDEQ, RevDEQCell, RevDEQConfig
from jdeq.models.revdeq_lm import REVDEQ_WIKITEXT103, RevDEQLM, RevDEQLMCell, RevDEQLMConfig
from jdeq.models.scalar import ScalarCell, ScalarDEQ, ScalarDEQConfig
from jdeq.models.transformer_xl import TransformerXL
from jdeq.models.trellis import DEQTrellisNet, TrellisCell, TrellisInjection, trellis_net
from jdeq.models.trellis_config import TRELLIS_PTB, TRELLIS_WIKITEXT103, TrellisConfig

__all__ = [
    "DECODER_DEQ_BYTES",
    "DENSENET121_CIFAR",
    "DENSENET121_IMAGENET",
    "DEQTransformerCell",
    "DEQTransformerConfig",
    "DEQTransformerLM",
    "DEQTrellisNet",
    "DEQViT",
    "DEQViTCell",
    "DEQViTConfig",
    "DEQ_TRANSFORMER_WIKITEXT103",
    "DEQ_TRANSFORMER_WIKITEXT103_JR",
    "DecoderCell",
    "DecoderDEQConfig",
    "DecoderDEQLM",
    "DecoderInjection",
    "Generated",
    "DenseNet",
    "DenseNetConfig",
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
    "RESNET101_CIFAR",
    "RESNET101_IMAGENET",
    "RESNET18_CIFAR",
    "RESNET18_IMAGENET",
    "RESNET50_IMAGENET",
    "REVDEQ_CIFAR",
    "REVDEQ_SMALL",
    "REVDEQ_WIKITEXT103",
    "ResNet",
    "ResNetConfig",
    "RevDEQ",
    "RevDEQCell",
    "RevDEQConfig",
    "RevDEQLM",
    "RevDEQLMCell",
    "RevDEQLMConfig",
    "TRANSFORMER_XL_WIKITEXT103",
    "TRELLIS_PTB",
    "TRELLIS_WIKITEXT103",
    "Sampling",
    "ScalarCell",
    "ScalarDEQ",
    "ScalarDEQConfig",
    "TransformerXL",
    "TransformerXLConfig",
    "TrellisCell",
    "TrellisConfig",
    "TrellisInjection",
    "generate",
    "largest_step",
    "trellis_net",
    "tune_step",
]
