"""A DEQ-TrellisNet on the copy memory task, T = 200; otherwise as copy_memory.

python -m experiments.train copy_memory_t200 --workdir runs/copy200

Source: see copy_memory. The delay of 210 is 14 + 28 + 56 + 112, again the last four dilations: with
1, 2, 4, ..., 128, which miss it, a like recipe was still at the loss of remembering nothing after
450 steps.
Hardware: 2 CPU cores.
Time: 3 min 51 s of training on 2 cores shared with other work (0.2 s a step); the report more than
2 min.
Result: RESULTS.md; every answer right (a loss of 0.0945 nats is remembering nothing).
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
