"""The post-norm DEQ-Transformer on WikiText-103, without regularization.

python -m experiments.train wikitext103_deq_postln --workdir runs/deq_postln --data.directory DATA

DATA holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.
Source: the published script of Bai, Kolter and Koltun (2019) and its successor: width 700, 48000
hidden units, segments of 150 and a memory as long, Anderson forward and Broyden backward with 30
and 35 evaluations, Adam at 2.5e-4 with a cosine over 300,000 steps of 56 segments, 16,000 of
warm-up, 32,000 of pre-training by two weight-tied layers. Evaluated on windows of 1500 tokens, each
from an empty memory, where the published evaluation goes on through the text.
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 24.0 perplexity a word in the paper with 30 evaluations, 29.2 after 12; 97.7M parameters.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    MeshConfig,
    OptimizerConfig,
    PretrainConfig,
    SolverConfig,
)
from experiments.data import CorpusData
from jdeq.models import DEQ_TRANSFORMER_WIKITEXT103

CONFIG = ExperimentConfig(
    data=CorpusData(
        directory="data/wikitext-103", length=150, batch_size=56, contiguous=True, test_length=1500
    ),
    model=DEQ_TRANSFORMER_WIKITEXT103,
    solver=SolverConfig(kind="anderson", rtol=1e-3, max_steps=30),
    gradient=GradientConfig(kind="implicit", solver="broyden", rtol=1e-4, max_steps=35),
    optimizer=OptimizerConfig(learning_rate=2.5e-4, warmup_steps=16_000, clip_norm=0.25),
    pretrain=PretrainConfig(steps=32_000, evaluations=2),
    # The softmax sorts its tokens by cluster: each device its own, not all of them together.
    mesh=MeshConfig(local_stop=True),
    loop=LoopConfig(
        steps=300_000,
        log_every=50,
        save_every=2000,
        test_every=10_000,
        spectrum_every=10_000,
        spectrum_examples=1,
        budgets=(12, 30),
    ),
)
