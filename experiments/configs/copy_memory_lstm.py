"""The LSTM on the copy memory task, T = 50: the baseline of copy_memory.

python -m experiments.train copy_memory_lstm --workdir runs/copy_lstm

Source: the comparison of Bai, Kolter and Koltun (2018, 2019) at T = 50; as many parameters as the
TrellisNet, the same data, batches and optimiser.
Hardware: 2 CPU cores.
Time: to be measured.
Result: to be measured.
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
