"""Where a number comes from: the commit, the machine and the versions that it was made with."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

COMMIT = "JDEQ_COMMIT"
"""Says the commit where the checkout is no git repository, as in a container or an archive."""
_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGES = ("jax", "flax", "optax")
_PEERS = ("jaxopt", "optimistix", "lineax", "banax", "torch", "torchdeq")
_OF_TIMES = (*_PACKAGES, "jaxlib", "numpy", *_PEERS)


def provenance(packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """For a run's report: commit, device, how many of them, CPU cores, versions of Python and of
    those ``packages`` that are installed.
    """
    device = jax.devices()[0]
    return {
        "commit": commit(),
        "device": "CPU" if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in packages if (version := _version(name)) is not None},
        },
    }


def manifest() -> dict[str, Any]:
    """What measured times depend on: `provenance` with all packages that are timed, the compiler's
    flags, the precision of matrix products, the kind of processor, and what else the machine does.
    """
    return {
        **provenance(_OF_TIMES),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # None: the backend's default
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
    }


@functools.cache
def commit() -> str:
    """The first characters of the checkout's commit, with "+" where files of jdeq or experiments
    other than results were changed or added since; else what the environment says; else "unknown".
    """
    try:
        found = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "jdeq", "experiments")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT, "unknown")
    # what the report command writes is no change of the code
    lines = [line for line in changed.splitlines() if "results" not in line.lower()]
    return found + "+" * bool(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
