"""DEQ-TrellisNet on the Penn Treebank, in words.

python -m experiments.train ptb_trellis --workdir runs/ptb --data.directory DATA

DATA holds ptb.train.txt, ptb.valid.txt and ptb.test.txt.
Source: Bai, Kolter and Koltun (2019), table 2: width 1400, embeddings of 400, DropConnect 0.5,
dropout as in the TrellisNet code. Its training (SGD with averaging, an auxiliary loss) is not in
the text that this was written from: Adam at 1e-3 with a cosine over 100 epochs of windows of 110
here, 40 evaluations, and no state handed on from the text before.
Hardware: one GPU in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 57.1 perplexity a word in the paper; 24.2M parameters.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
)
from experiments.data import CorpusData
from jdeq.models import TRELLIS_PTB

CONFIG = ExperimentConfig(
    data=CorpusData(
        directory="data/ptb", length=110, batch_size=24, test_length=220, test_stride=110
    ),
    model=TRELLIS_PTB,
    solver=SolverConfig(kind="picard", rtol=1e-3, max_steps=40),
    gradient=GradientConfig(kind="implicit", rtol=1e-4, max_steps=40),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=1000, weight_decay=1e-6, clip_norm=0.225
    ),
    loop=LoopConfig(
        steps=35_000,
        log_every=50,
        save_every=1000,
        test_every=3500,
        spectrum_every=3500,
        spectrum_examples=1,
        budgets=(20, 40),
    ),
)
