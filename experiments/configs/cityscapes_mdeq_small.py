"""The small multiscale DEQ that segments Cityscapes.

python -m experiments.train cityscapes_mdeq_small --workdir runs/cityscapes --data.data-dir DIR

Source: Bai, Koltun and Kolter (2020), by the released seg_mdeq_SMALL.yaml: 32-64-128-256 channels,
dropout 0.05, 27 evaluations forward and 30 backward by Broyden, SGD at 0.01 with plain momentum and
a cosine, weight decay 2e-4, 500 epochs in batches of 12 (247 steps each), 60,000 steps of
pre-training by 3 layers, scaled crops of 1024x512. Deviations: it starts from random weights, not
from those of imagenet_mdeq_small, and all classes weigh the same; an absolute residual there; the
cosine ends at 0 (there at 1e-6).
Hardware: four GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: the paper's mean IoU is not in the sources that this was written from.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    PretrainConfig,
    SolverConfig,
)
from experiments.image_data import CityscapesData
from jdeq.models import MDEQ_CITYSCAPES_SMALL

CONFIG = ExperimentConfig(
    data=CityscapesData(batch_size=12),
    model=MDEQ_CITYSCAPES_SMALL,
    solver=SolverConfig(kind="broyden", rtol=1e-3, max_steps=27),
    gradient=GradientConfig(kind="implicit", rtol=1e-3, max_steps=30),
    optimizer=OptimizerConfig(
        kind="sgd", nesterov=False, learning_rate=0.01, warmup_steps=0, weight_decay=2e-4
    ),
    pretrain=PretrainConfig(steps=60_000, evaluations=3),
    loop=LoopConfig(
        steps=123_500,
        log_every=50,
        save_every=2470,
        test_every=2470,
        spectrum_every=24_700,
        spectrum_examples=1,
        budgets=(4, 8, 14, 20, 27),
    ),
)
