"""The post-norm DEQ-Transformer on WikiText-103 with Jacobian regularization.

python -m experiments.train wikitext103_deq_postln_jr --workdir runs/postln_jr --data.directory DATA

Source: the published script of Bai, Koltun and Kolter (2021): as wikitext103_deq_postln, but 12 and
13 evaluations, a memory of 300, dropout 0.06 and 0.01 on the attention, gamma 1.9 on 0.35 of the
steps, 0.1 more every 35,000. Deviations: those are counted from the end of the pre-training, first
at step 67,000 (there at 35,000); budgets vary from step to step by up to 2 both ways (there only
downwards). (Its table 4 prints 12 and 12, 60 segments a batch, gamma 1.6 to 2.5.)
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 24.9 perplexity a word in the paper with 12 evaluations.
"""

import dataclasses

from experiments.config import RegularizerConfig
from experiments.configs import wikitext103_deq_postln
from jdeq.models import DEQ_TRANSFORMER_WIKITEXT103_JR

BASE = wikitext103_deq_postln.CONFIG
CONFIG = dataclasses.replace(
    BASE,
    model=DEQ_TRANSFORMER_WIKITEXT103_JR,
    solver=dataclasses.replace(BASE.solver, max_steps=12),
    gradient=dataclasses.replace(BASE.gradient, max_steps=13),
    regularizer=RegularizerConfig(gamma=1.9, probability=0.35, growth=0.1, growth_every=35_000),
    loop=dataclasses.replace(BASE.loop, budgets=(6, 12), budget_jitter=2),
)
