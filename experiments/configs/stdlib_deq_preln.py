"""The pre-norm DEQ-Transformer without regularization, which diverges in the paper.

python -m experiments.train stdlib_deq_preln --workdir runs/deq_preln

Source: as stdlib_deq, in the pre-norm form of Bai, Koltun and Kolter (2021), section 5.2.
Hardware: 2 CPU cores, one of them used.
Time: 5 and a half minutes, compilation and report included.
Result: diverges with seeds 1 and 2 (8.1 and 4.6 bits per byte); 3.184 with seed 0.
"""

import dataclasses

from experiments.configs import stdlib_deq

CONFIG = dataclasses.replace(
    stdlib_deq.CONFIG, model=dataclasses.replace(stdlib_deq.CONFIG.model, pre_norm=True)
)
