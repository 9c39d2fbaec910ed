"""The reversible DEQ language model on WikiText-103 in GPT-2's subwords.

python -m experiments.train wikitext103_revdeq --workdir runs/revdeq --data.directory DATA
    --data.tokenizer DATA/tokenizer.json

DATA holds wiki.train.raw, wiki.valid.raw and wiki.test.raw; the tokenizer is GPT-2's.
Source: McCallum, Arora and Foster (2025), table 1: one block of width 768 with 12 heads, windows of
448 subwords, vocabulary padded to 50304, beta 0.5, tolerance 1e-3, at most 4 steps, AdamW at 3e-4,
halved on a plateau (patience 10), batches of 32, 10 epochs (about 117M subwords: 82,000 steps); by
the released script weight decay 1e-4 and a plateau told every 200 steps. Deviations: kernels alone
are decayed; the script's MLP has one more hidden layer of 3072 (94.1M parameters), its text is
wikitext-103-v1, with <unk> and spaces around punctuation.
Hardware: one GPU in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 23.2 perplexity a subword in the paper, not comparable with the 24 a word of word-level
models, nor are their bits per byte: their files have other bytes.
"""

from experiments.config import (
    ExperimentConfig,
    GradientConfig,
    LoopConfig,
    OptimizerConfig,
    SolverConfig,
)
from experiments.data import CorpusData
from jdeq.models import REVDEQ_WIKITEXT103

CONFIG = ExperimentConfig(
    data=CorpusData(
        directory="data/wikitext-103-raw", tokenizer="data/gpt2/tokenizer.json", length=448
    ),
    model=REVDEQ_WIKITEXT103,
    solver=SolverConfig(kind="reversible", beta=0.5, rtol=1e-3, max_steps=4),
    gradient=GradientConfig(kind="reversible"),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        schedule="plateau",
        warmup_steps=0,
        plateau_factor=0.5,
        plateau_patience=10,
        plateau_steps=200,
        weight_decay=1e-4,
    ),
    loop=LoopConfig(
        steps=82_000,
        log_every=50,
        save_every=1000,
        test_every=4000,
        spectrum_every=8000,
        spectrum_examples=1,
        budgets=(2, 4, 8, 12),
    ),
)
