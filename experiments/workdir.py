"""One run, one directory: its configuration on disk, and who may write there."""

import dataclasses
import json
import math
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import differences, read_config

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
EXPORT_FILE = "model.jaxexport"
PROFILE = "profile"
NONFINITE_FILE = "nonfinite.json"


def claim(workdir: pathlib.Path, config: ExperimentConfig) -> None:
    """Make ``workdir`` the place of this run, or find that it is already.

    Raises:
      ConfigError: if it is a file, holds a run of another configuration, or holds checkpoints of
        an unknown one. Nothing is written then.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir {workdir} is not a directory")
    path = workdir / CONFIG_FILE
    if path.exists():
        refuse_another(workdir, config)
        return
    if (workdir / CHECKPOINTS).exists():
        raise ConfigError(
            f"{workdir} holds checkpoints, but {path} is missing; nothing was changed"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, config.to_json())


def refuse_another(workdir: pathlib.Path, config: ExperimentConfig) -> None:
    """Refuse a workdir of another configuration.

    Raises:
      ConfigError: if it is one, with what differs; if its configuration cannot be read.
    """
    found = _on_the_devices_of(config, read_config(workdir / CONFIG_FILE))
    if found != config:
        lines = differences(dataclasses.asdict(config), dataclasses.asdict(found))
        raise ConfigError(
            f"{workdir} holds a run of another configuration:\n  "
            + "\n  ".join(lines)
            + "\nnothing was changed; choose another --workdir"
        )


def _on_the_devices_of(config: ExperimentConfig, found: ExperimentConfig) -> ExperimentConfig:
    """``found`` on the mesh of ``config``: a run may go on on other devices."""
    axes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
    return dataclasses.replace(found, mesh=dataclasses.replace(found.mesh, **axes))


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes | bytearray) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def write_nonfinite(workdir: pathlib.Path, steps: Sequence[dict[str, Any]], seed: int) -> str:
    """Write which steps a run was given up on; returns a sentence that says so.

    Args:
      steps: as `jdeq.training.NonFiniteError` has them; their metrics that are not finite are
        written as strings.
      seed: of the run.
    """
    again = shlex.join(["python", "-m", "experiments.replay", "--workdir", str(workdir)])

    def readable(metrics: dict[str, float]) -> dict[str, float | str]:
        return {n: v if math.isfinite(v) else str(v) for n, v in metrics.items()}

    written = [step | {"metrics": readable(step["metrics"])} for step in steps]
    path = workdir / NONFINITE_FILE
    write_text(path, json.dumps({"replay": again, "seed": seed, "steps": written}, indent=2) + "\n")
    return f"These steps are in {path}. Find the samples at fault with: {again}"


def read_nonfinite(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The steps that `write_nonfinite` wrote.

    Raises:
      ConfigError: if there are none that can be read.
    """
    path = workdir / NONFINITE_FILE
    try:
        return json.loads(path.read_text())["steps"]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing: no run there was given up on steps that were not finite"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error!r}") from error


def read_report(workdir: pathlib.Path) -> dict | None:
    """The report of a finished run, or None if there is none that can be read."""
    try:
        return json.loads((workdir / REPORT_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
