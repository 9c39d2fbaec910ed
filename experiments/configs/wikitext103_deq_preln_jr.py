"""The pre-norm DEQ-Transformer on WikiText-103 with Jacobian regularization.

python -m experiments.train wikitext103_deq_preln_jr --workdir runs/preln_jr --data.directory DATA

Source: the published script of Bai, Koltun and Kolter (2021): as wikitext103_deq_postln_jr, but
pre-norm, 14 evaluations each way, gamma 2.0 on 0.4 of the steps, 0.1 more every 30,000 (first at
step 62,000, there at 60,000).
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: 24.5 perplexity a word in the paper with 14 evaluations.
"""

import dataclasses

from experiments.config import RegularizerConfig
from experiments.configs import wikitext103_deq_postln_jr

BASE = wikitext103_deq_postln_jr.CONFIG
CONFIG = dataclasses.replace(
    BASE,
    model=dataclasses.replace(BASE.model, pre_norm=True),
    solver=dataclasses.replace(BASE.solver, max_steps=14),
    gradient=dataclasses.replace(BASE.gradient, max_steps=14),
    regularizer=RegularizerConfig(gamma=2.0, probability=0.4, growth=0.1, growth_every=30_000),
    loop=dataclasses.replace(BASE.loop, budgets=(7, 14)),
)
