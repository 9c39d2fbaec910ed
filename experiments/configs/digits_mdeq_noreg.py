"""The unregularized twin of digits_mdeq: gamma 0, everything else the same.

Source: the comparison of Bai, Koltun and Kolter (2021), Table 3, at the size of the digits.
Hardware: 2 CPU cores.
Time: about 3 minutes on 2 cores.
Result: RESULTS.md, beside digits_mdeq.
"""

import dataclasses

from experiments.config import RegularizerConfig
from experiments.configs import digits_mdeq

CONFIG = dataclasses.replace(digits_mdeq.CONFIG, regularizer=RegularizerConfig(gamma=0.0))
