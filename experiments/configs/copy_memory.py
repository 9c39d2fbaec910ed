"""A DEQ-TrellisNet on the copy memory task, T = 50.

python -m experiments.train copy_memory --workdir runs/copy

Source: the task of Bai, Kolter and Koltun (2018, 2019). The recipe is ours.
Hardware: 2 CPU cores.
Time: to be measured.
Result: to be measured.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
)
from experiments.data import CopyMemoryData
from jdeq.models import TrellisConfig

CONFIG = ExperimentConfig(
    data=CopyMemoryData(delay=50),
    model=TrellisConfig(
        vocab_size=10, width=32, embed_width=10, dilations=(1, 2, 4, 8, 16, 32), tied=False
    ),
    solver=SolverConfig(kind="picard", rtol=1e-3, max_steps=12),
    gradient=GradientConfig(kind="implicit"),
    optimizer=OptimizerConfig(
        learning_rate=1e-2, schedule="constant", warmup_steps=50, clip_norm=1.0
    ),
    loop=LoopConfig(
        steps=800,
        log_every=25,
        save_every=400,
        test_every=200,
        spectrum_every=400,
        spectrum_examples=4,
        budgets=(1, 2, 3, 4, 6, 8),
    ),
)
