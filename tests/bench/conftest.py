"""A suite's quick run from the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def quick_run(tmp_path, quick_compilation) -> Callable[..., tuple[dict, str]]:
    """``quick_run(suite, start)``: the results that the run wrote, and what it printed; ``start``
    are the interpreter's arguments before the suite's name.
    """

    def run(suite: str, start: Sequence[str] = ("-m", "experiments.bench")) -> tuple[dict, str]:
        done = subprocess.run(
            [sys.executable, *start, suite, "--quick", "--out", str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | quick_compilation,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / suite / "results.json").read_text()), done.stdout

    return run
