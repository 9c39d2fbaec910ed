"""The one configuration system: nested frozen dataclasses, and what is built from them.

A run is a file in experiments/configs/ holding ``CONFIG``, an `ExperimentConfig`. Strings such as
a solver's kind become jdeq objects here (those of the data in data.py, of the optimiser in
optimizer_config.py, of the penalty in regularizer_config.py) and nowhere else. A field that is None
takes the default of the object it belongs to; one that the chosen kind does not have must be None.
"""

import dataclasses
import json
from typing import Any, Literal

import jdeq
from experiments.config_errors import ConfigError, checked
from experiments.data import CopyMemoryData, CorpusData, DigitsData, ImageSetData, StdlibData
from experiments.image_data import CityscapesData, ImageNetData, ScenesData
from experiments.optimizer_config import OptimizerConfig
from experiments.regression_data import SyntheticData
from experiments.regularizer_config import RegularizerConfig
from jdeq.layers import ForwardBackward, PeacemanRachford
from jdeq.models import (
    DecoderDEQConfig,
    DenseNetConfig,
    DEQTransformerConfig,
    DEQViTConfig,
    LSTMConfig,
    MDEQConfig,
    MDEQSegmenterConfig,
    MonDEQConfig,
    ResNetConfig,
    RevDEQConfig,
    RevDEQLMConfig,
    ScalarDEQConfig,
    TransformerXLConfig,
    TrellisConfig,
)
from jdeq.models.tensor_rules import TENSOR_RULES
from jdeq.training import Layout, make_mesh

_SOLVERS = {
    "picard": jdeq.Picard,
    "anderson": jdeq.Anderson,
    "restarted_anderson": jdeq.RestartedAnderson,
    "broyden": jdeq.Broyden,
    "newton_krylov": jdeq.NewtonKrylov,
    "reversible": jdeq.Reversible,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """The forward solver and when it stops."""

    kind: Literal[
        "picard", "anderson", "restarted_anderson", "broyden", "newton_krylov", "reversible"
    ] = "anderson"
    damping: float | None = None
    """picard, anderson, restarted_anderson: the share of f(z) in the next iterate."""
    depth: int | None = None
    """anderson, restarted_anderson: how many earlier iterates are mixed."""
    history: int | None = None
    """broyden: how many updates are kept."""
    beta: float | None = None
    """reversible: the share of f in each half-step."""
    rtol: float = 1e-3
    max_steps: int = 8
    test_every: int = 1
    """Steps between tests whether all samples are done; at ``max_steps``: none, a fixed budget."""

    def build(self) -> Any:
        """The solver."""
        return _build("solver", _SOLVERS, self, shared=("rtol", "max_steps", "test_every"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplittingConfig:
    """Monotone models: the map whose fixed point is their equilibrium."""

    kind: Literal["forward_backward", "peaceman_rachford"] | None = None
    """None: the model's own choice."""
    step: float | None = None
    """The share of the new in an evaluation of the map, > 0."""

    def build(self) -> Any:
        """The splitting, or None."""
        if self.kind is None:
            if self.step is not None:
                raise ConfigError(f"splitting.step needs a splitting.kind; got {self.step}")
            return None
        kinds = {"forward_backward": ForwardBackward, "peaceman_rachford": PeacemanRachford}
        return _build("splitting", kinds, self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """How the solution is differentiated."""

    kind: Literal[
        "implicit",
        "unrolled",
        "one_step",
        "phantom",
        "neumann",
        "shared_inverse",
        "reversible",
    ] = "implicit"
    solver: Literal["picard", "anderson", "broyden", "newton_krylov"] | None = None
    """implicit: of the backward solve; None is the forward one."""
    rtol: float | None = None
    """implicit: tolerance of the backward solve, None is the forward one; reversible: wanted error
    of the reconstructed states."""
    max_steps: int | None = None
    """implicit: budget of the backward solve; None is the forward one."""
    steps: int | None = None
    """phantom: steps of the damped unroll."""
    damping: float | None = None
    """phantom: damping of the unroll."""
    terms: int | None = None
    """neumann: terms of the series."""

    def build(self) -> Any:
        """The gradient rule."""
        kinds = {
            "implicit": jdeq.Implicit,
            "unrolled": jdeq.Unrolled,
            "one_step": jdeq.OneStep,
            "phantom": jdeq.Phantom,
            "neumann": jdeq.Neumann,
            "shared_inverse": jdeq.SharedInverse,
            "reversible": jdeq.ReversibleGradient,
        }
        made = None if self.solver is None else {"solver": _SOLVERS[self.solver]()}
        return _build("gradient", kinds, self, made=made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """First train the cell unrolled: a few plain evaluations from z = 0, the same parameters."""

    steps: int = 0
    evaluations: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices of all processes are used, see `jdeq.training.make_mesh`."""

    data: int = -1
    """Devices that split the batch only; -1: all that are left."""
    fsdp: int = 1
    """Devices that split the batch, the parameters and the optimiser."""
    tensor: int = 1
    """Devices that split the matrices of a layer."""
    local_stop: bool = False
    """Each device solves and scores its part of a batch by itself, and the gradients are summed:
    nothing is communicated within a solve. Not for models with batch statistics."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters, norms and losses are float32."""

    def layout(self) -> Layout:
        """Where the state of a run and its batches live."""
        return checked(
            "mesh",
            lambda: Layout(
                mesh=make_mesh(data=self.data, fsdp=self.fsdp, tensor=self.tensor),
                rules=TENSOR_RULES,
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length of the run, and how often what is done."""

    steps: int
    log_every: int = 7
    """Steps summed up in one record."""
    save_every: int = 70
    """Steps between checkpoints."""
    test_every: int = 28
    """Steps between evaluations on the test examples."""
    spectrum_every: int = 28
    """Steps between estimates of the spectral radius, on ``spectrum_examples`` test examples."""
    spectrum_examples: int = 16
    power_iteration: bool = False
    """With the spectral radius also the published estimate of it, a control: it is wrong for
    complex eigenvalues."""
    budgets: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Evaluations of the cell after which the report stops hard."""
    rtols: tuple[float, ...] = (1e-2, 1e-3)
    """Tolerances to which the report solves."""
    budget_jitter: int = 0
    """Each training step draws its ``solver.max_steps`` from those up to so many above or below;
    each value compiles a program. 0: always the same."""
    max_skipped: int = 10
    """Non-finite steps in a row after which to give up."""
    profile_from: int | None = None
    """The first of ``profile_steps`` steps that are traced into profile/ of the workdir, once: not
    if the run is resumed after it. None: no trace."""
    profile_steps: int = 3
    peak_flops: float | None = None
    """Operations a second that a device could do, which mfu is the share of; None: the dense
    bfloat16 peak where it is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One run."""

    model: (
        MDEQConfig
        | MDEQSegmenterConfig
        | MonDEQConfig
        | DEQViTConfig
        | ResNetConfig
        | DenseNetConfig
        | RevDEQConfig
        | RevDEQLMConfig
        | TrellisConfig
        | DecoderDEQConfig
        | DEQTransformerConfig
        | TransformerXLConfig
        | LSTMConfig
        | ScalarDEQConfig
    )
    loop: LoopConfig
    seed: int = 0
    """Of the initialisation, the order of the data, dropout and probes."""
    data: (
        DigitsData
        | ImageSetData
        | ImageNetData
        | CityscapesData
        | ScenesData
        | StdlibData
        | CorpusData
        | CopyMemoryData
        | SyntheticData
    ) = DigitsData()
    solver: SolverConfig = SolverConfig()
    gradient: GradientConfig = GradientConfig()
    splitting: SplittingConfig = SplittingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    mesh: MeshConfig = MeshConfig()

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _build(
    part: str,
    kinds: dict[str, Any],
    config: Any,
    *,
    shared: tuple[str, ...] = (),
    made: dict[str, Any] | None = None,
) -> Any:
    """The object of ``config.kind``, from the fields of ``config`` that are not None; ``made`` are
    objects in place of what a field says.
    """
    cls = kinds[config.kind]
    own = [field.name for field in dataclasses.fields(cls)]
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("kind", *shared) and getattr(config, field.name) is not None
    }
    for name in options:
        if name not in own:
            has = [f.name for f in dataclasses.fields(config) if f.name in own] or ["none"]
            raise ConfigError(
                f"{part}.{name} is not an option of {part}.kind {config.kind}, whose options are: "
                f"{', '.join(has)}; pass --{part}.{name} None"
            )
    return checked(part, lambda: cls(**options | (made or {})))
