"""Configurations by name and on disk: which runs there are, what a workdir was written with."""

import dataclasses
import difflib
import importlib
import json
import pathlib
import pkgutil
import typing
from typing import Any

from experiments import configs
from experiments.config import ConfigError, ExperimentConfig


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
    one, two = flatten(ours), flatten(theirs)
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


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, ``{"solver.depth": 3, ...}``."""
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in flatten(child, f"{prefix}.{key}" if prefix else key).items()
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
