"""A quick run of the benchmark of the gradient rules from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench.rules import RTOL, RULES

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_quick_run_of_the_rules_suite(tmp_path):
    command = [sys.executable, "-m", "experiments.bench", "rules", "--quick", "--out"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "rules" / "results.json").read_text())
    cases = {case["name"]: case for case in content["cases"]}
    assert set(cases) == set(RULES)
    for name, case in cases.items():
        assert not case["error"], name
        assert case["residual_worst_sample"] <= 1.01 * RTOL, name
    error = {name: case["gradient_error"] for name, case in cases.items()}
    for exact in ("Implicit", "Unrolled", "ReversibleGradient"):
        assert error[exact] < 1e-3  # 1e-5, times 1 / (1 - 0.92), and what unrolling lags behind
    assert error["Implicit"] < error["Implicit(rtol=1e-2)"] < error["Neumann(terms=5)"]
    assert error["Neumann(terms=5)"] < error["OneStep"] < 1
    products = {name: case["products"] for name, case in cases.items()}
    assert products["OneStep"] < products["Neumann(terms=5)"] < products["Implicit"]
