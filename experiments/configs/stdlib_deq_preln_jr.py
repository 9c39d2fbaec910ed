"""The pre-norm DEQ-Transformer with Jacobian regularization.

python -m experiments.train stdlib_deq_preln_jr --workdir runs/deq_preln_jr

Source: as stdlib_deq_jr, in the pre-norm form of Bai, Koltun and Kolter (2021), section 5.2.
Hardware: 2 CPU cores, one of them used.
Time: 4 minutes, compilation and report included.
Result: RESULTS.md.
"""

import dataclasses

from experiments.configs import stdlib_deq_jr

CONFIG = dataclasses.replace(
    stdlib_deq_jr.CONFIG, model=dataclasses.replace(stdlib_deq_jr.CONFIG.model, pre_norm=True)
)
