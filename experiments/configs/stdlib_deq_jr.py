"""A DEQ-Transformer with Jacobian regularization on the bytes of the Python standard library.

python -m experiments.train stdlib_deq_jr --workdir runs/deq_jr

Source: as stdlib_deq, with the regularized recipe of Bai, Koltun and Kolter (2021): half the
evaluations each way (12), the penalty on 0.35 of the steps; gamma 1 here, 1.9 there.
Hardware: 2 CPU cores, one of them used.
Time: 4 minutes, compilation and report included.
Result: RESULTS.md.
"""

import dataclasses

from experiments.config import RegularizerConfig
from experiments.configs import stdlib_deq

CONFIG = dataclasses.replace(
    stdlib_deq.CONFIG,
    solver=dataclasses.replace(stdlib_deq.CONFIG.solver, max_steps=12),
    gradient=dataclasses.replace(stdlib_deq.CONFIG.gradient, max_steps=12),
    regularizer=RegularizerConfig(gamma=1.0, probability=0.35),
)
