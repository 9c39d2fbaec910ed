"""Transformer-XL on the bytes of the Python standard library: the explicit twin of stdlib_deq.

python -m experiments.train stdlib_transformer --workdir runs/transformer

Four post-norm layers with the parameters (within 0.1%), the data, the memory and the training of
stdlib_deq, but a larger learning rate, which suits it better (2e-3: 3.16 bits per byte, 5e-3: 2.95
in a shorter run).
Source: Dai et al. (2019), the model that Bai, Kolter and Koltun (2019) compare with.
Hardware: 2 CPU cores, one of them used.
Time: a minute and a half, compilation and report included.
Result: RESULTS.md.
"""

import dataclasses

from experiments.config import GradientConfig, PretrainConfig, SolverConfig
from experiments.configs import stdlib_deq
from jdeq.models import TransformerXLConfig

CONFIG = dataclasses.replace(
    stdlib_deq.CONFIG,
    model=TransformerXLConfig(vocab_size=256, width=68, heads=4, hidden=246, memory=64, layers=4),
    optimizer=dataclasses.replace(stdlib_deq.CONFIG.optimizer, learning_rate=5e-3),
    solver=SolverConfig(),
    gradient=GradientConfig(),
    pretrain=PretrainConfig(),
)
