"""The stability studies of Bai, Koltun and Kolter (2021), Stabilizing Equilibrium Models by
Jacobian Regularization, in small: on the digits and on the bytes of the standard library.
"""

from experiments.studies.stability_digits import (
    COLUMN_SUMS,
    COSTS,
    DIGITS_GAMMA,
    GROWING_INSTABILITY,
    WEIGHT_DECAY,
)
from experiments.studies.stability_text import (
    ARCHITECTURES,
    LANGUAGE_MODELS,
    QUALITY_OVER_TIME,
    SPECTRAL_RADIUS,
)

STABILITY = (
    DIGITS_GAMMA,
    GROWING_INSTABILITY,
    LANGUAGE_MODELS,
    QUALITY_OVER_TIME,
    ARCHITECTURES,
    SPECTRAL_RADIUS,
    WEIGHT_DECAY,
    COLUMN_SUMS,
    COSTS,
)
"""In the order of RESULTS.md."""
