"""A multiscale DEQ that segments scenes of handwritten digits.

TODO
Source:
Hardware: 2 CPU cores.
Time:
Result:
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
from experiments.image_data import ScenesData
from jdeq.models import MDEQSegmenterConfig

CONFIG = ExperimentConfig(
    data=ScenesData(train_scenes=512, test_scenes=64, batch_size=8),
    model=MDEQSegmenterConfig(
        channels=(16, 32, 32),
        num_classes=11,
        expansion=2,
        groups=4,
        post_affine=True,
        downsamples=1,
        dropout=0.05,
    ),
    solver=SolverConfig(kind="anderson", depth=3, rtol=1e-3, max_steps=8),
    gradient=GradientConfig(kind="implicit", rtol=1e-3, max_steps=8),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.05),
    regularizer=RegularizerConfig(gamma=1.0, probability=0.2),
    pretrain=PretrainConfig(steps=150, evaluations=4),
    loop=LoopConfig(
        steps=500,
        log_every=10,
        save_every=100,
        test_every=100,
        spectrum_every=250,
        spectrum_examples=4,
        budgets=(1, 2, 4, 6, 8),
    ),
)
