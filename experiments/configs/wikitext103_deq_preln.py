"""The pre-norm DEQ-Transformer on WikiText-103 without regularization, which diverges in the paper.

python -m experiments.train wikitext103_deq_preln --workdir runs/deq_preln --data.directory DATA

Source: as wikitext103_deq_postln, in the pre-norm form of Bai, Koltun and Kolter (2021).
Hardware: 4 GPUs in the paper; not run here, where the text cannot be downloaded.
Time: not measured.
Result: diverges in the paper.
"""

import dataclasses

from experiments.configs import wikitext103_deq_postln

CONFIG = dataclasses.replace(
    wikitext103_deq_postln.CONFIG,
    model=dataclasses.replace(wikitext103_deq_postln.CONFIG.model, pre_norm=True),
)
