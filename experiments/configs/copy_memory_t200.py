"""A DEQ-TrellisNet on the copy memory task, T = 200; otherwise as copy_memory.

python -m experiments.train copy_memory_t200 --workdir runs/copy200

Source: see copy_memory.
Hardware: 2 CPU cores.
Time: to be measured.
Result: to be measured.
"""

import dataclasses

from experiments.configs import copy_memory
from experiments.data import CopyMemoryData

CONFIG = dataclasses.replace(
    copy_memory.CONFIG,
    data=CopyMemoryData(delay=200, batch_size=16),
    model=dataclasses.replace(copy_memory.CONFIG.model, dilations=(1, 2, 7, 14, 28, 56, 112)),
    loop=dataclasses.replace(copy_memory.CONFIG.loop, steps=900, test_every=300),
)
