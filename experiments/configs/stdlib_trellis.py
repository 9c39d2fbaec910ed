"""DEQ-TrellisNet on the bytes of the Python standard library.

python -m experiments.train stdlib_trellis --workdir runs/trellis

Source: the model of Bai, Kolter and Koltun (2019) with the parameters of stdlib_deq (within 1%):
one dilation each of 1 and 2, so that an evaluation carries information 3 bytes on.
Hardware: 2 CPU cores, one of them used.
Time: 6 minutes with the machine busy, compilation and report included.
Result: 2.740 bits per byte after 24 evaluations, 2.744 to 1e-2, which takes 13 (seed 0, 256 windows
of 64 bytes).
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
)
from experiments.data import StdlibData
from jdeq.models import TrellisConfig

CONFIG = ExperimentConfig(
    data=StdlibData(length=64, batch_size=8, test_windows=256),
    model=TrellisConfig(vocab_size=256, width=128, embed_width=64, dilations=(1, 2), tied=False),
    solver=SolverConfig(kind="picard", rtol=1e-3, max_steps=24),
    gradient=GradientConfig(kind="implicit", rtol=1e-4, max_steps=24),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=50, clip_norm=0.25),
    loop=LoopConfig(
        steps=1000,
        log_every=10,
        save_every=250,
        test_every=250,
        spectrum_every=250,
        spectrum_examples=2,
        budgets=(4, 12, 24),
    ),
)
