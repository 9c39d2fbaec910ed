"""The large multiscale DEQ on ImageNet.

python -m experiments.train imagenet_mdeq_large --workdir runs/imagenet_large --data.data-dir DIR

Source: as imagenet_mdeq_small, by the released cls_mdeq_LARGE.yaml: 80-160-320-640 channels, weight
decay 1e-4, pre-training by 4 layers. Deviations as there.
Hardware: four GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 77.5% in the papers with 63M parameters (67.1M by the released code, and here) and 30
evaluations.
"""

import dataclasses

from experiments.config import PretrainConfig
from experiments.configs import imagenet_mdeq_small
from jdeq.models import MDEQ_IMAGENET_LARGE

CONFIG = dataclasses.replace(
    imagenet_mdeq_small.CONFIG,
    model=MDEQ_IMAGENET_LARGE,
    optimizer=dataclasses.replace(imagenet_mdeq_small.CONFIG.optimizer, weight_decay=1e-4),
    pretrain=PretrainConfig(steps=510_000, evaluations=4),
)
