"""ResNet-101 on CIFAR-10: an explicit baseline.

python -m experiments.train cifar10_resnet101 --workdir runs/resnet101 --data.data-dir DIR

Source: the network of He, Zhang, Ren and Sun (2016) with the stem for small images; otherwise as
cifar10_resnet18.
Hardware: one GPU; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 93.8% in 2106.14342 with 40M parameters (42.5M here).
"""

import dataclasses

from experiments.configs import cifar10_resnet18
from jdeq.models import RESNET101_CIFAR

CONFIG = dataclasses.replace(cifar10_resnet18.CONFIG, model=RESNET101_CIFAR)
