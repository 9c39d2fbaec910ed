"""An explicit residual network on the 8x8 digits: the baseline of digits_mdeq and its kin.

python -m experiments.train digits_resnet --workdir runs/resnet

Source: two stages of two blocks (He et al. 2016), 3x3 stem, width 16; data, batches and optimiser
of digits_mdeq.
Hardware: 2 CPU cores.
Time: 22 s of training on one core beside other work, 45 s in all.
Result: RESULTS.md; 42,938 parameters.
"""

from experiments.config import ExperimentConfig, LoopConfig, OptimizerConfig
from experiments.data import DigitsData
from jdeq.models import ResNetConfig

CONFIG = ExperimentConfig(
    data=DigitsData(batch_size=96, max_shift=1),
    model=ResNetConfig(blocks=(2, 2), num_classes=10, small_images=True, width=16),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.05),
    loop=LoopConfig(steps=560),
)
