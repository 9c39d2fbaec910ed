"""README.md is true: its code runs as printed and its commands are the ones CI runs."""

import re
from pathlib import Path

import jax
import numpy as np

import jdeq

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_example_runs_as_printed(capsys):
    names = {}
    example, probe = blocks("python")
    exec(compile(example, "README.md", "exec"), names)
    assert re.search(
        r"loss 0\.\d{3}, evaluations of f \d+, residual \de-\d\d", capsys.readouterr().out
    )
    sol = names["sol"]
    assert (sol.stats.status == jdeq.Status.CONVERGED).all()

    # Oracle: dense float64 Newton and adjoint solves.
    w, x = (np.asarray(a, np.float64) for a in (names["params"]["w"], names["x"]))
    z = np.asarray(sol.z, np.float64)
    for _ in range(5):
        fz = np.tanh(z @ w + x)
        jacobian = (1 - fz**2)[:, :, None] * w.T
        z = z + np.linalg.solve(np.eye(256) - jacobian, (fz - z)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(sol.z, z, atol=1e-3 * np.abs(z).max())
    cotangent = (2 * z / z.size)[:, :, None]
    adjoint = np.linalg.solve(np.eye(256) - np.swapaxes(jacobian, 1, 2), cotangent)[:, :, 0]
    gradient = z.T @ (adjoint * (1 - z**2))
    error = np.linalg.norm(names["grads"]["w"] - gradient) / np.linalg.norm(gradient)
    assert error < 1e-3  # rtol 1e-4, times 1 / (1 - rho)

    exec(compile(probe, "README.md", "exec"), names)
    assert names["nfe"] >= 1
    assert names["residual"] <= 1e-4


def test_example_is_about_fifteen_lines():
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 16


def test_ci_runs_the_test_command_of_the_readme():
    job, tests = blocks("bash")
    assert "experiments.train digits_mdeq --workdir runs/digits" in job
    assert "pytest" in tests
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_suite_has_eight_cpu_devices():
    assert jax.default_backend() == "cpu"
    assert jax.device_count() == 8
