"""DEQ-TrellisNet on WikiText-103, in words.

python -m experiments.train wikitext103_trellis --workdir runs/trellis --data.directory DATA

DATA holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.
Source: Bai, Kolter and Koltun (2019), table 3, in the widths of the TrellisNet code. The published
loss splits the softmax by frequency; this one has 267,735 logits a token (8.6 GB for a batch of 8
windows of 1000), so that windows are short here. Training chosen here: Adam without weight decay, a
clip of 0.1, 4,000 steps of warm-up, about 13 epochs; solves as in ptb_trellis.
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 29.0 perplexity a word in the paper; 178.0M parameters.
"""

import dataclasses

from experiments.config import OptimizerConfig
from experiments.configs import ptb_trellis
from experiments.data import CorpusData
from jdeq.models import TRELLIS_WIKITEXT103

CONFIG = dataclasses.replace(
    ptb_trellis.CONFIG,
    data=CorpusData(
        directory="data/wikitext-103", length=75, batch_size=60, test_length=150, test_stride=75
    ),
    model=TRELLIS_WIKITEXT103,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4000, clip_norm=0.1),
    loop=dataclasses.replace(
        ptb_trellis.CONFIG.loop,
        steps=300_000,
        save_every=2000,
        test_every=10_000,
        spectrum_every=10_000,
    ),
)
