"""The one configuration system: nested frozen dataclasses, and what is built from them.

A run is a file in experiments/configs/ holding ``CONFIG``, an `ExperimentConfig`. Strings such as
a solver's kind become jdeq objects here and nowhere else. A field that is None takes the default
of the object it belongs to; one that the chosen kind does not have must be None.
"""

import dataclasses
import difflib
import importlib
import json
import pathlib
import pkgutil
import typing
from typing import Any, Literal

import optax

import jdeq
from experiments import configs
from jdeq.models import MDEQConfig, RevDEQConfig
from jdeq.training import adamw, warmup_cosine


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The digits and how they are batched."""

    test_fraction: float = 0.2
    """Share of the images held out."""
    split_seed: int = 0
    """Which split; apart from the run's seed, so that seeds share a test set."""
    batch_size: int = 96
    max_shift: int = 0
    """Augmentation: each training image moved by up to so many pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """The forward solver and when it stops."""

    kind: Literal["picard", "anderson", "broyden", "newton_krylov", "reversible"] = "anderson"
    damping: float | None = None
    """picard, anderson: the share of f(z) in the next iterate."""
    depth: int | None = None
    """anderson: how many earlier iterates are mixed."""
    history: int | None = None
    """broyden: how many updates are kept."""
    beta: float | None = None
    """reversible: the share of f in each half-step."""
    rtol: float = 1e-3
    max_steps: int = 8

    def build(self) -> Any:
        """The solver."""
        kinds = {
            "picard": jdeq.Picard,
            "anderson": jdeq.Anderson,
            "broyden": jdeq.Broyden,
            "newton_krylov": jdeq.NewtonKrylov,
            "reversible": jdeq.Reversible,
        }
        return _build("solver", kinds, self, shared=("rtol", "max_steps"))


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
        return _build("gradient", kinds, self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, cosine learning rate with a linear warm-up."""

    learning_rate: float = 1e-3
    """The largest one."""
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Largest global norm of the gradient; None does not clip."""

    def build(self, *, total_steps: int) -> tuple[optax.Schedule, optax.GradientTransformation]:
        """The learning rate by step, and the optimiser that follows it."""

        def make():
            schedule = warmup_cosine(
                peak=self.learning_rate, warmup_steps=self.warmup_steps, total_steps=total_steps
            )
            options = {"weight_decay": self.weight_decay, "clip_norm": self.clip_norm}
            return schedule, adamw(schedule, **options)

        return _checked("optimizer", make)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """The Jacobian penalty, `jdeq.JacobianSchedule`."""

    gamma: float = 0.0
    """Weight of the penalty; 0 is none."""
    probability: float = 1.0
    """Share of the steps that apply it."""
    growth: float = 0.0
    """Added to gamma every ``growth_every`` steps."""
    growth_every: int = 0

    def build(self, *, start: int, seed: int) -> jdeq.JacobianSchedule:
        """The schedule; nothing is penalised before step ``start``."""
        return _checked(
            "regularizer",
            lambda: jdeq.JacobianSchedule(
                weight=self.gamma,
                probability=self.probability,
                growth=self.growth,
                growth_every=self.growth_every,
                start=start,
                seed=seed,
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """First train the cell unrolled: a few plain evaluations from z = 0, the same parameters."""

    steps: int = 0
    evaluations: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length of the run, and how often what is done."""

    epochs: int = 30
    log_every: int = 7
    """Steps summed up in one record."""
    save_every_epochs: int = 5
    test_every_epochs: int = 2
    spectrum_every_epochs: int = 2
    """Between estimates of the spectral radius, on ``spectrum_images`` test images."""
    spectrum_images: int = 16
    max_skipped: int = 10
    """Non-finite steps in a row after which to give up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One run."""

    model: MDEQConfig | RevDEQConfig
    seed: int = 0
    """Of the initialisation, the order of the data, dropout and probes."""
    data: DataConfig = DataConfig()
    solver: SolverConfig = SolverConfig()
    gradient: GradientConfig = GradientConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    loop: LoopConfig = LoopConfig()

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def run_names() -> list[str]:
    """The names of the runs in experiments/configs/."""
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__))


def load_run(name: str) -> ExperimentConfig:
    """The configuration called ``name``.

    Raises:
      ConfigError: if there is none; names like it are listed.
    """
    names = run_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, cutoff=0.4) or names
        raise ConfigError(f"no run is called {name!r}; perhaps {' or '.join(near)}")
    return importlib.import_module(f"experiments.configs.{name}").CONFIG


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Lines "field: ours, theirs" for every leaf in which two configurations differ."""
    one, two = _flatten(ours), _flatten(theirs)
    missing = "(not there)"
    return [
        f"{name}: {one.get(name, missing)!s} here, {two.get(name, missing)!s} in the workdir"
        for name in dict.fromkeys([*one, *two])
        if one.get(name, missing) != two.get(name, missing)
    ]


def read_config(path: pathlib.Path) -> ExperimentConfig:
    """The configuration a workdir was written with.

    Raises:
      ConfigError: if the file is missing, cut short, or of a version with other fields.
    """
    try:
        return _from_dict(ExperimentConfig, json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"no run in {path.parent}: {path} is missing") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error


def _build(part: str, kinds: dict[str, Any], config: Any, *, shared: tuple[str, ...] = ()) -> Any:
    """The object of ``config.kind``, from the fields of ``config`` that are not None."""
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
    return _checked(part, lambda: cls(**options))


def _checked(part: str, make: Any) -> Any:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{part}: {error}") from error


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _from_dict(cls: Any, values: dict[str, Any]) -> Any:
    """The dataclass ``cls``, or the member of a union of them that these fields fit.

    Fields that were added since take their defaults.
    """
    members = typing.get_args(cls) or (cls,)
    fitting = [member for member in members if _fits(member, set(values))]
    if not fitting:
        names = " or ".join(member.__name__ for member in members)
        raise ValueError(f"fields {sorted(values)} do not fit {names}")
    types = {field.name: field.type for field in dataclasses.fields(fitting[0])}
    return fitting[0](
        **{
            name: _from_dict(types[name], value)
            if isinstance(value, dict)
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in values.items()
        }
    )


def _fits(cls: Any, names: set[str]) -> bool:
    fields = dataclasses.fields(cls)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    return needed <= names <= {field.name for field in fields}
