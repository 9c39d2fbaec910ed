"""The multi-tier monotone operator DEQ on CIFAR-10 without augmentation.

python -m experiments.train cifar10_mondeq_multi --workdir runs/cifar10_mon3 --data.data-dir DIR

Source: Winston and Kolter (2020) and the notebook of their experiments: as cifar10_mondeq_single
with tiers of 16, 32 and 60 channels, Adam at 1e-2, a tenth of it after every 10 of 40 epochs.
Deviation: forward-backward splitting (the resolvent of several tiers is no convolution), whose
plain iteration takes more evaluations and smaller steps than their Peaceman-Rachford; Anderson
brings them down.
Hardware: one GPU in the paper; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 72.0% in the paper with 170K parameters.
"""

import dataclasses

from experiments.config import OptimizerConfig, SolverConfig, SplittingConfig
from experiments.configs import cifar10_mondeq_single
from jdeq.models import MONDEQ_CIFAR_MULTI

CONFIG = dataclasses.replace(
    cifar10_mondeq_single.CONFIG,
    model=MONDEQ_CIFAR_MULTI,
    splitting=SplittingConfig(kind="forward_backward", step=0.25),
    solver=SolverConfig(kind="anderson", rtol=1e-2, max_steps=300),
    optimizer=OptimizerConfig(
        learning_rate=1e-2, schedule="steps", decay_every=3900, decay_factor=0.1, warmup_steps=0
    ),
)
