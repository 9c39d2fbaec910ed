"""A quick run of the benchmark of the gradient rules from the command line."""

import pytest

from experiments.bench.rules import RTOL, RULES


@pytest.mark.slow
def test_quick_run_of_the_rules_suite(quick_run):
    content, _ = quick_run("rules")
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
