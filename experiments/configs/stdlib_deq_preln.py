"""The pre-norm DEQ-Transformer without regularization, which diverges in the paper.

python -m experiments.train stdlib_deq_preln --workdir runs/deq_preln

Source: as stdlib_deq, in the pre-norm form of Bai, Koltun and Kolter (2021), section 5.2.
Hardware: 2 CPU cores, one of them used.
Time: 5 and a half minutes, compilation and report included.
Result: RESULTS.md; it diverges with two of three seeds.
"""

import dataclasses

from experiments.configs import stdlib_deq

CONFIG = dataclasses.replace(
    stdlib_deq.CONFIG, model=dataclasses.replace(stdlib_deq.CONFIG.model, pre_norm=True)
)
