"""The small multiscale DEQ on ImageNet.

python -m experiments.train imagenet_mdeq_small --workdir runs/imagenet_small --data.data-dir DIR

Source: Bai, Koltun and Kolter (2020), by the released cls_mdeq_SMALL.yaml: 32-64-128-256 channels,
no dropout, 26 evaluations forward and 27 backward by Broyden, SGD at 0.05 with Nesterov momentum
and a cosine, weight decay 5e-5, 100 epochs in batches of 128 (10,009 steps each), 510,000 steps of
pre-training by 5 layers, random boxes of 224x224, mirrored. Deviations: the file stops at an
absolute residual; here it is a relative one of 1e-3, so that the budget is what counts; the last,
partial batch of an epoch is left out (there it is the 10,010th step); the cosine ends at 0 (there
at 1e-6); BatchNorm's statistics are those of the whole batch (there of a device's share of it).
Hardware: four GPUs in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 75.4% in the papers with 18M parameters (16.8M by the released code, and here) and 27
evaluations.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    PretrainConfig,
    SolverConfig,
)
from experiments.image_data import ImageNetData
from jdeq.models import MDEQ_IMAGENET_SMALL

CONFIG = ExperimentConfig(
    data=ImageNetData(batch_size=128),
    model=MDEQ_IMAGENET_SMALL,
    solver=SolverConfig(kind="broyden", rtol=1e-3, max_steps=26),
    gradient=GradientConfig(kind="implicit", rtol=1e-3, max_steps=27),
    optimizer=OptimizerConfig(kind="sgd", learning_rate=0.05, warmup_steps=0, weight_decay=5e-5),
    pretrain=PretrainConfig(steps=510_000, evaluations=5),
    loop=LoopConfig(
        steps=1_000_900,
        log_every=100,
        save_every=10_009,
        test_every=10_009,
        spectrum_every=50_045,
        budgets=(4, 8, 14, 20, 26),
    ),
)
