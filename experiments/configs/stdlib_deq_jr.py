"""A DEQ-Transformer with Jacobian regularization on the bytes of the Python standard library.

python -m experiments.train stdlib_deq_jr --workdir runs/deq_jr

Source: the post-norm DEQ-Transformer of Bai, Koltun and Kolter (2021) (12 evaluations forward, 12
products backward, tolerances 1e-3 and 1e-4, penalty on 0.35 of the steps, pre-training by two
weight-tied layers, a memory of earlier segments) at the size of a laptop. Adam at 1e-3 here, and
gamma 1.
Hardware: 2 CPU cores.
Time: not measured on an idle machine.
Result: not run in full yet. With --loop.steps 120 --pretrain.steps 60: 4.504 bits per byte to a
tolerance of 1e-2, which 99.4% of the positions reach in 15.2 evaluations; spectral radius 0.66.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    PretrainConfig,
    RegularizerConfig,
    SolverConfig,
)
from experiments.data import StdlibData
from jdeq.models import DEQTransformerConfig

CONFIG = ExperimentConfig(
    data=StdlibData(length=64, batch_size=16, contiguous=True, test_windows=128),
    model=DEQTransformerConfig(vocab_size=256, width=96, heads=4, hidden=768, memory=64),
    solver=SolverConfig(kind="anderson", rtol=1e-3, max_steps=12),
    gradient=GradientConfig(kind="implicit", rtol=1e-4, max_steps=12),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, clip_norm=0.25),
    regularizer=RegularizerConfig(gamma=1.0, probability=0.35),
    pretrain=PretrainConfig(steps=100, evaluations=2),
    loop=LoopConfig(
        steps=400,
        log_every=10,
        save_every=100,
        test_every=100,
        spectrum_every=100,
        spectrum_examples=2,
        budgets=(2, 4, 8, 12),
    ),
)
