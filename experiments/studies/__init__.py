"""The studies: which runs, and what is shown of them. See experiments.study, experiments.report."""

from experiments.studies.causal import CAUSAL
from experiments.studies.meshes import MESHES
from experiments.studies.others import OTHERS
from experiments.studies.stability import STABILITY
from experiments.studies.study import Study, Training

STUDIES: tuple[Study, ...] = (*STABILITY, *OTHERS, CAUSAL, MESHES)
"""In the order of RESULTS.md."""
