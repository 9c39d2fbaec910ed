"""ResNet-101 on ImageNet: an explicit baseline.

python -m experiments.train imagenet_resnet101 --workdir runs/imagenet_resnet --data.data-dir DIR

Source: He, Zhang, Ren and Sun (2016), a baseline in Bai, Koltun and Kolter (2020, 2021): SGD at 0.1
with momentum 0.9, weight decay 1e-4, batches of 256 (5,004 steps an epoch), a tenth of the learning
rate after every 30 of 90 epochs, random boxes of 224x224, mirrored.
Hardware: several GPUs; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 77.1% in 2106.14342, with 52M parameters as it prints (44.5M here, and in every
implementation).
"""

from experiments.config import (
    ExperimentConfig,
    LoopConfig,
    OptimizerConfig,
)
from experiments.image_data import ImageNetData
from jdeq.models import RESNET101_IMAGENET

CONFIG = ExperimentConfig(
    data=ImageNetData(batch_size=256),
    model=RESNET101_IMAGENET,
    optimizer=OptimizerConfig(
        kind="sgd",
        nesterov=False,
        learning_rate=0.1,
        schedule="steps",
        decay_every=150_120,
        decay_factor=0.1,
        warmup_steps=0,
        weight_decay=1e-4,
    ),
    loop=LoopConfig(steps=450_360, log_every=100, save_every=5004, test_every=5004),
)
