"""The large multiscale DEQ that segments Cityscapes.

python -m experiments.train cityscapes_mdeq_large --workdir runs/cityscapes --data.data-dir DIR

Source: as cityscapes_mdeq_small, by the released seg_mdeq_LARGE.yaml: 80-160-320-640 channels,
dropout 0.03, weight decay 3e-4. Deviations as there, but for the start: this file's is random too.
Hardware: four GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: the paper's mean IoU is not in the sources that this was written from.
"""

import dataclasses

from experiments.configs import cityscapes_mdeq_small
from jdeq.models import MDEQ_CITYSCAPES_LARGE

CONFIG = dataclasses.replace(
    cityscapes_mdeq_small.CONFIG,
    model=MDEQ_CITYSCAPES_LARGE,
    optimizer=dataclasses.replace(cityscapes_mdeq_small.CONFIG.optimizer, weight_decay=3e-4),
)
