"""The multiscale DEQ on CIFAR-10 with augmentation.

python -m experiments.train cifar10_mdeq --workdir runs/cifar10_mdeq --data.data-dir DIR

Source: Bai, Koltun and Kolter (2020), by their released cls_mdeq_LARGE.yaml: 32-64-128-256
channels, dropout 0.3, 18 evaluations forward and 20 backward by Broyden, Adam at 1e-3 with a
cosine, 220 epochs in batches of 128 (390 steps each), 20,000 steps of pre-training by 10 layers.
Deviations: no betas are set here (0.9, 0.999); the last,
partial batch of an epoch is left out (there it is the 391st step); the cosine ends at 0 (there at
1e-6); BatchNorm's statistics are those of the whole batch (there of a device's share of it).
Hardware: four GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 93.6% and 17 evaluations in 2106.14342, with 10M parameters (11.1M by the released file, and
here).
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    PretrainConfig,
    SolverConfig,
)
from experiments.data import ImageSetData
from jdeq.models import MDEQ_CIFAR_LARGE

CONFIG = ExperimentConfig(
    data=ImageSetData(name="cifar10", batch_size=128, augment=True),
    model=MDEQ_CIFAR_LARGE,
    solver=SolverConfig(kind="broyden", rtol=1e-3, max_steps=18),
    gradient=GradientConfig(kind="implicit", rtol=1e-3, max_steps=20),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
    pretrain=PretrainConfig(steps=20_000, evaluations=10),
    loop=LoopConfig(
        steps=85_800,
        log_every=50,
        save_every=1950,
        test_every=1950,
        spectrum_every=3900,
        budgets=(2, 4, 6, 8, 12, 18),
    ),
)
