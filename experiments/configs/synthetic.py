"""One number from one number: the synthetic study of the Jacobian penalty, where it can be seen.

python -m experiments.train synthetic --workdir runs/synthetic --regularizer.gamma 2
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    RegularizerConfig,
    SolverConfig,
)
from experiments.regression_data import SyntheticData
from jdeq.models import ScalarDEQConfig

EPOCHS = 50
STEPS = EPOCHS * (4096 // 64)

CONFIG = ExperimentConfig(
    data=SyntheticData(batch_size=64),
    model=ScalarDEQConfig(hidden=50),
    solver=SolverConfig(kind="anderson", rtol=1e-3, max_steps=6),
    gradient=GradientConfig(kind="implicit", rtol=1e-4, max_steps=6),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=0),
    regularizer=RegularizerConfig(gamma=1.0, probability=0.4),
    loop=LoopConfig(
        steps=STEPS,
        log_every=64,
        save_every=1600,
        test_every=320,
        spectrum_every=320,
        spectrum_examples=1000,
        budgets=(1, 2, 3, 6),
        rtols=(1e-2, 1e-3),
    ),
)
