"""The tiny multiscale DEQ on CIFAR-10 without augmentation.

python -m experiments.train cifar10_mdeq_tiny --workdir runs/cifar10_tiny --data.data-dir DIR

Source: Bai, Koltun and Kolter (2020), by their released cls_mdeq_TINY.yaml: two scales of 24
channels, dropout 0.25, 18 evaluations forward and 20 backward by Broyden, Adam at 1e-3 with a
cosine, weight decay 2.5e-6, 50 epochs in batches of 128 (390 steps each), 3,000 steps of
pre-training by 10 layers. Deviations: the weight decay is decoupled and of kernels only, whose
scale weight and group norms take out of the cell: there it acts on the step size alone; those of
cifar10_mdeq in epoch (391 steps there), cosine and BatchNorm.
Hardware: two GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 170K parameters in the paper (159K by the released file, and here), whose accuracy is not in
the sources that this was written from.
"""

import dataclasses

from experiments.config import OptimizerConfig, PretrainConfig
from experiments.configs import cifar10_mdeq
from jdeq.models import MDEQ_CIFAR_TINY

CONFIG = dataclasses.replace(
    cifar10_mdeq.CONFIG,
    data=dataclasses.replace(cifar10_mdeq.CONFIG.data, augment=False),
    model=MDEQ_CIFAR_TINY,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, weight_decay=2.5e-6),
    pretrain=PretrainConfig(steps=3000, evaluations=10),
    loop=dataclasses.replace(cifar10_mdeq.CONFIG.loop, steps=19_500),
)
