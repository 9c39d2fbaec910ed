"""The single-tier monotone operator DEQ on CIFAR-10 without augmentation.

python -m experiments.train cifar10_mondeq_single --workdir runs/cifar10_mon --data.data-dir DIR

Source: Winston and Kolter (2020) and the notebook of their experiments: 81 channels, Peaceman-
Rachford with step 1, tolerance 1e-2, Adam at 1e-3, a tenth after 25 of 40 epochs, batches of 128
(390 steps each). Deviations: images are not padded by a border; the step is not tuned on the way
(jdeq.models.tune_step finds one); the pixels' std, see jdeq/data/images.py.
Hardware: one GPU in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 74.0% in the paper with 172K parameters.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
    SplittingConfig,
)
from experiments.data import ImageSetData
from jdeq.models import MONDEQ_CIFAR_SINGLE

CONFIG = ExperimentConfig(
    data=ImageSetData(name="cifar10", batch_size=128),
    model=MONDEQ_CIFAR_SINGLE,
    splitting=SplittingConfig(kind="peaceman_rachford", step=1.0),
    solver=SolverConfig(kind="picard", rtol=1e-2, max_steps=300),
    gradient=GradientConfig(kind="implicit", rtol=1e-2, max_steps=300),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule="steps", decay_every=9750, decay_factor=0.1, warmup_steps=0
    ),
    loop=LoopConfig(
        steps=15_600,
        log_every=50,
        save_every=1950,
        test_every=1950,
        spectrum_every=3900,
        budgets=(2, 4, 6, 8, 12),
    ),
)
