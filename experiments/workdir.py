"""One run, one directory: its configuration on disk, and who may write there."""

import dataclasses
import json
import os
import pathlib

from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import differences, read_config
from jdeq.training import CheckpointError, read_metrics

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
EXPORT_FILE = "model.jaxexport"


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
        found = read_config(path)
        if found != config:
            lines = differences(dataclasses.asdict(config), dataclasses.asdict(found))
            raise ConfigError(
                f"{workdir} holds a run of another configuration:\n  "
                + "\n  ".join(lines)
                + "\nnothing was changed; choose another --workdir"
            )
        return
    if (workdir / CHECKPOINTS).exists():
        raise ConfigError(
            f"{workdir} holds checkpoints, but {path} is missing; nothing was changed"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, config.to_json())


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes | bytearray) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def read_report(workdir: pathlib.Path) -> dict | None:
    """The report of a finished run, or None if there is none that can be read."""
    try:
        return json.loads((workdir / REPORT_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def refuse_lost_checkpoints(workdir: pathlib.Path, save_every: int) -> None:
    """Refuse to start a run again, over its metrics, whose checkpoints are gone.

    Raises:
      CheckpointError: if the metrics reach a step after the first save. Nothing is written then.
    """
    path = workdir / METRICS_FILE
    reached = max((r["step"] for r in read_metrics(path)), default=0) if path.exists() else 0
    if reached > save_every:
        raise CheckpointError(
            f"{workdir}: the metrics reach step {reached}, but there is no checkpoint in "
            f"{workdir / CHECKPOINTS}; nothing was changed. Put it back, "
            "or choose another --workdir"
        )
