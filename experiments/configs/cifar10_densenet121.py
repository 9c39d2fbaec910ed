"""DenseNet-121 on CIFAR-10: an explicit baseline.

python -m experiments.train cifar10_densenet121 --workdir runs/densenet --data.data-dir DIR

Source: the network of Huang et al. (2017) with the stem for small images; otherwise as
cifar10_resnet18.
Hardware: one GPU; not run here, where the set cannot be downloaded.
Time: not measured.
Result: 95.0% in 2106.14342 with 8M parameters (7.0M here; the network for ImageNet has 8.0M).
"""

import dataclasses

from experiments.configs import cifar10_resnet18
from jdeq.models import DENSENET121_CIFAR

CONFIG = dataclasses.replace(cifar10_resnet18.CONFIG, model=DENSENET121_CIFAR)
