"""ResNet-18 on CIFAR-10: an explicit baseline.

python -m experiments.train cifar10_resnet18 --workdir runs/cifar10_resnet18 --data.data-dir DIR

Source: the network of He, Zhang, Ren and Sun (2016) with the stem for small images, a baseline in
Bai, Koltun and Kolter (2020, 2021), who do not print its recipe. The one here is the usual one: SGD
at 0.1 with Nesterov momentum, weight decay 5e-4, a cosine over 200 epochs in batches of 128 (390
steps each), pad, crop and mirror.
Hardware: one GPU; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 93.0% in 2106.14342 with 10M parameters (11.2M here).
"""

from experiments.config import (
    ExperimentConfig,
    LoopConfig,
    OptimizerConfig,
)
from experiments.data import ImageSetData
from jdeq.models import RESNET18_CIFAR

CONFIG = ExperimentConfig(
    data=ImageSetData(name="cifar10", batch_size=128, augment=True),
    model=RESNET18_CIFAR,
    optimizer=OptimizerConfig(kind="sgd", learning_rate=0.1, warmup_steps=0, weight_decay=5e-4),
    loop=LoopConfig(steps=78_000, log_every=50, save_every=1950, test_every=1950),
)
