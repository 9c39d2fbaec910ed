"""The studies: which runs, and what is shown of them. See experiments.study, experiments.report."""

from experiments.studies.others import OTHERS
from experiments.studies.stability import STABILITY
from experiments.studies.study import Study, Training

STUDIES: tuple[Study, ...] = (*STABILITY, *OTHERS)
"""In the order of RESULTS.md."""
