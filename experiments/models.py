"""Which model a configuration is of."""

from typing import Any

from jdeq.models import (
    LSTM,
    MDEQ,
    DecoderDEQConfig,
    DecoderDEQLM,
    DenseNet,
    DenseNetConfig,
    DEQTransformerConfig,
    DEQTransformerLM,
    DEQTrellisNet,
    DEQViT,
    DEQViTConfig,
    LSTMConfig,
    MDEQConfig,
    MDEQSegmenter,
    MDEQSegmenterConfig,
    MonDEQ,
    MonDEQConfig,
    ResNet,
    ResNetConfig,
    RevDEQ,
    RevDEQConfig,
    RevDEQLM,
    RevDEQLMConfig,
    ScalarDEQ,
    ScalarDEQConfig,
    TransformerXL,
    TransformerXLConfig,
    TrellisConfig,
)

MODELS: dict[type, Any] = {
    MDEQConfig: MDEQ,
    MDEQSegmenterConfig: MDEQSegmenter,
    MonDEQConfig: MonDEQ,
    DEQViTConfig: DEQViT,
    ResNetConfig: ResNet,
    DenseNetConfig: DenseNet,
    RevDEQConfig: RevDEQ,
    RevDEQLMConfig: RevDEQLM,
    TrellisConfig: DEQTrellisNet,
    DEQTransformerConfig: DEQTransformerLM,
    DecoderDEQConfig: DecoderDEQLM,
    TransformerXLConfig: TransformerXL,
    LSTMConfig: LSTM,
    ScalarDEQConfig: ScalarDEQ,
}
EXPLICIT = (TransformerXLConfig, LSTMConfig, ResNetConfig, DenseNetConfig)
"""Baselines that solve nothing: without solver, gradient rule, penalty, pre-training, spectrum."""
