"""A DEQ-Transformer on the bytes of the Python standard library, without regularization.

python -m experiments.train stdlib_deq --workdir runs/deq

Source: the post-norm DEQ-Transformer of Bai, Koltun and Kolter (2021) (tolerances 1e-3 and 1e-4,
pre-training by two weight-tied layers, a memory of earlier segments) at the size of a laptop: 24
evaluations each way instead of 30 and 35, Adam at 2e-3.
Hardware: 2 CPU cores, one of them used.
Time: 5 and a half minutes, compilation and report included.
Result: RESULTS.md; with some seeds half of the positions do not converge to 1e-2 in 50
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
from experiments.data import StdlibData
from jdeq.models import DEQTransformerConfig

CONFIG = ExperimentConfig(
    data=StdlibData(length=64, batch_size=8, contiguous=True, test_windows=32, test_length=512),
    model=DEQTransformerConfig(vocab_size=256, width=96, heads=4, hidden=768, memory=64),
    solver=SolverConfig(kind="anderson", rtol=1e-3, max_steps=24),
    gradient=GradientConfig(kind="implicit", rtol=1e-4, max_steps=24),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, clip_norm=0.25),
    pretrain=PretrainConfig(steps=150, evaluations=2),
    loop=LoopConfig(
        steps=1000,
        log_every=10,
        save_every=250,
        test_every=250,
        spectrum_every=50,
        spectrum_examples=2,
        budgets=(4, 12, 24),
    ),
)
