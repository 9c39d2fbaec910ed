"""Transformer-XL with 18 layers on WikiText-103: the explicit twin of the DEQ-Transformer.

python -m experiments.train wikitext103_transformer_xl --workdir runs/xl --data.directory DATA

Source: the model that the DEQ papers compare with; they print its 18 layers and 110M parameters,
not its widths or its training: here the proportions of Dai et al. (2019) and the training of
wikitext103_deq_postln.
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 24.1 perplexity a word in the papers; 110.3M parameters.
"""

import dataclasses

from experiments.config import GradientConfig, PretrainConfig, SolverConfig
from experiments.configs import wikitext103_deq_postln
from jdeq.models import TRANSFORMER_XL_WIKITEXT103

BASE = wikitext103_deq_postln.CONFIG
CONFIG = dataclasses.replace(
    BASE,
    model=TRANSFORMER_XL_WIKITEXT103,
    solver=SolverConfig(),
    gradient=GradientConfig(),
    pretrain=PretrainConfig(),
    loop=dataclasses.replace(BASE.loop, budget_jitter=0),
)
