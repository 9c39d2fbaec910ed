"""The multi-scale reversible DEQ on CIFAR-10.

python -m experiments.train cifar10_revdeq --workdir runs/cifar10 --data.data-dir DIR

Source: McCallum, Arora and Foster (2025), table 2: four stages of 4 steps, beta 0.8, tolerance
1e-6, AdamW at 3e-4, batches of 64, 100 epochs (78,100 steps); by the released script weight decay
1e-4, halved on a plateau (patience 10, told every 200 steps), pad, crop and mirror. Deviations:
kernels alone are decayed; the pixels' std (0.2470, 0.2435, 0.2616 there).
Hardware: one GPU in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 94.4% in the paper, with 10.3M parameters and 8 evaluations a stage.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
)
from experiments.data import ImageSetData
from jdeq.models import REVDEQ_CIFAR

CONFIG = ExperimentConfig(
    data=ImageSetData(name="cifar10", batch_size=64, augment=True),
    model=REVDEQ_CIFAR,
    solver=SolverConfig(kind="reversible", beta=0.8, rtol=1e-6, max_steps=4),
    gradient=GradientConfig(kind="reversible"),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        schedule="plateau",
        warmup_steps=0,
        plateau_factor=0.5,
        plateau_patience=10,
        plateau_steps=200,
        weight_decay=1e-4,
    ),
    loop=LoopConfig(
        steps=78_100,
        log_every=50,
        save_every=1562,
        test_every=781,
        spectrum_every=3905,
        budgets=(2, 4, 6, 8),
    ),
)
