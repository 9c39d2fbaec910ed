"""The LSTM on the copy memory task, T = 50: the baseline of copy_memory.

python -m experiments.train copy_memory_lstm --workdir runs/copy_lstm

Source: the comparison of Bai, Kolter and Koltun (2018, 2019) at T = 50; as many parameters as the
TrellisNet, the same data, batches and optimiser.
Hardware: 2 CPU cores.
Time: 23 s of training on 2 cores shared with other work (0.014 s a step).
Result: test loss 0.2974 nats, that of remembering nothing (0.2971); 0.2960 after 4000 steps
(--loop.steps 4000, 96 s); seed 0.
"""

import dataclasses

from experiments.config import GradientConfig, SolverConfig
from experiments.configs import copy_memory
from jdeq.models import LSTMConfig

CONFIG = dataclasses.replace(
    copy_memory.CONFIG,
    model=LSTMConfig(vocab_size=10, hidden=46, embed_width=10),
    solver=SolverConfig(),
    gradient=GradientConfig(),
)
