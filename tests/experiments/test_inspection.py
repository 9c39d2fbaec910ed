"""The numbers behind `experiments.inspect`, against oracles that do without jdeq."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from experiments.build import build
from experiments.config_files import load_run
from experiments.inspection import cheaper, gradients, page, pictures, solves, tables
from experiments.inspection.cheaper import OWN, Setting
from experiments.inspection.findings import Findings, as_json, residual_histogram
from experiments.inspection.gradients import Gradient, Quality
from experiments.inspection.solves import Cell, Curve, Samples, Spectrum
from jdeq.diagnostics import Eigenvalues
from jdeq.models import ScalarDEQ, ScalarDEQConfig
from jdeq.training import equilibrium_of

pytestmark = pytest.mark.xdist_group("inspection")


def linear_cell(matrices, x, *, causal=False):
    def f(params, z, x):
        return jnp.einsum("bij,bj->bi", params, z) + x

    return Cell(jax.jit(f), jnp.asarray(matrices), jnp.zeros_like(x), x, causal, type(None), 1)


@pytest.fixture(scope="module")
def affine():
    rng = np.random.default_rng(0)
    matrices = 0.3 * rng.normal(size=(3, 6, 6)) / 6**0.5
    return linear_cell(matrices.astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32))


def test_residuals_by_evaluation_are_those_of_steps_that_were_over():
    residual = np.array([[1.0, 2.0], [0.5, np.inf], [0.1, 0.2]])
    cost = np.array([[1, 2], [2, 1], [3, 1]])
    found = solves.by_evaluation(residual, cost, 6)
    nan = np.nan
    np.testing.assert_array_equal(found[:, 0], [1.0, 1.0, 0.5, 0.5, 0.5, 0.1])
    np.testing.assert_array_equal(found[:, 1], [nan, 2.0, nan, 0.2, 0.2, 0.2])
    np.testing.assert_array_equal(solves.reached(found, 0.5), [3, 4])
    np.testing.assert_array_equal(solves.reached(found, 0.15), [6, np.inf])
    np.testing.assert_array_equal(solves.latest(found[:3]), [0.5, np.inf])


def test_a_curve_is_that_of_picard_by_hand(affine):
    found = solves.curve(affine, jdeq.Picard(), evaluations=8)
    matrices, x = np.asarray(affine.params, float), np.asarray(affine.x, float)
    z = np.zeros_like(x)
    for row in found.trace:
        fz = np.einsum("bij,bj->bi", matrices, z) + x
        expected = np.linalg.norm(fz - z, axis=1) / np.linalg.norm(fz, axis=1)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-6)
        z = fz
    assert found.evaluations == 1 and found.step_seconds > 0


@pytest.mark.parametrize(
    "solver", [jdeq.NewtonKrylov(inner_steps=8, inner_rtol=1e-4), jdeq.Reversible(beta=0.8)]
)
def test_curves_count_as_the_solver_does(affine, solver):
    """A solve that stops at a tolerance has spent what the curve says it takes."""
    solution = jdeq.fixed_point(
        affine.f, affine.params, affine.z0, affine.x, solver=solver, rtol=1e-3, max_steps=30
    )
    curve = solves.curve(affine, solver, evaluations=60)
    np.testing.assert_array_equal(solves.reached(curve.trace, 1e-3), solution.stats.nfe)
    assert curve.evaluations >= 2


def test_the_spectrum_is_that_of_the_matrices(affine):
    found = solves.spectrum(affine, jdeq.Anderson())
    true = np.abs(np.linalg.eigvals(np.asarray(affine.params)))
    np.testing.assert_allclose(found.radius, true.max(axis=1), rtol=1e-3)
    np.testing.assert_allclose(
        np.sort(np.abs(found.eigenvalues.values)), np.sort(true), rtol=1e-3, atol=1e-4
    )
    assert found.size == 6 and found.residual.max() < solves.TIGHT
    assert found.rate is not None and found.rate < 1


def test_a_spectrum_of_fewer_eigenvalues_than_entries_is_told_to_its_end():
    matrices = np.diag([0.6, 0.6, -0.2]).astype(np.float32)[None]
    found = solves.spectrum(linear_cell(matrices, np.ones((1, 3), np.float32)), jdeq.Anderson())
    np.testing.assert_allclose(
        found.eigenvalues.values, np.array([[0.6, -0.2, np.nan]]) + 0j, atol=2e-6
    )
    assert found.beta is not None and found.rate < 0.6


@pytest.fixture(scope="module")
def scalar():
    """A run of the scalar DEQ, untrained; eight examples."""
    run = build(load_run("synthetic"))
    variables = jax.device_get(run.initial_state().variables)
    batch = gradients.examples_of(run, 8)
    return run, variables, batch, solves.cell_of(run.model, variables, batch.inputs)


def dense_gradient(variables, batch):
    """By hand in float64: ``z = w relu(u z + v x + b)`` iterated, ``dz/dt = f_t / (1 - f_z)``."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    (cell,) = [p["cell"] if "cell" in p else p for p in (params.get("deq", params),)]
    u, w = cell["up"]["kernel"][0], cell["down"]["kernel"][:, 0]
    v, b = cell["inject"]["kernel"][0], cell["inject"]["bias"]
    x = np.asarray(batch.inputs, np.float64)[:, 0]
    z = np.zeros_like(x)
    for _ in range(2000):
        z = np.maximum(u * z[:, None] + v * x[:, None] + b, 0) @ w
    hidden = np.maximum(u * z[:, None] + v * x[:, None] + b, 0)
    on = w * (hidden > 0)
    outer = 2 * (z - batch.labels) / len(x) / (1 - on @ u)
    found = {
        "down": {"kernel": (outer @ hidden)[:, None]},
        "inject": {"bias": outer @ on, "kernel": ((outer * x) @ on)[None]},
        "up": {"kernel": ((outer * z) @ on)[None]},
    }
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])


def test_the_reference_is_the_dense_gradient(scalar):
    found, by = gradients.reference(*scalar)
    _, variables, batch, _ = scalar
    np.testing.assert_allclose(found.vector, dense_gradient(variables, batch), rtol=1e-7, atol=1e-9)
    assert gradients.trusted(found) and "float64 to rtol 1e-10" in by


def test_gradients_count_what_their_rule_takes(scalar):
    """And their errors are those against the dense gradient."""
    run, variables, batch, cell = scalar
    fixed = run.model.clone(solver=jdeq.Picard(), max_steps=6, rtol=1e-9)
    true, counts = dense_gradient(variables, batch), {}
    errors = {}
    for rule in (jdeq.OneStep(), jdeq.Neumann(terms=9)):
        with pytest.warns(UserWarning, match="below the resolution"):
            found = gradients.gradient(run, fixed.clone(gradient=rule), variables, batch, cell)
        counts[rule] = found.evaluations, found.products
        errors[rule] = gradients.compare(found.vector, true).relative_error
    (one, none), (many, eight) = counts.values()
    assert one == many >= 6 and none == 0 and eight == 8
    assert errors[jdeq.Neumann(terms=9)] < 0.1 * errors[jdeq.OneStep()]


def test_comparison_by_hand():
    found = gradients.compare(np.array([3.0, 0.0]), np.array([3.0, 4.0]))
    assert found == pytest.approx((9 / 15, 4 / 5))
    assert gradients.compare(np.zeros(2), np.zeros(2)) == (1.0, 0.0)
    assert np.isnan(gradients.compare(np.array([np.nan]), np.ones(1)).relative_error)


def test_rules_that_cannot_work_with_the_solver_are_left_out():
    def names(solver, rule):
        model = ScalarDEQ(ScalarDEQConfig(), solver=solver, gradient=rule)
        return set(gradients.rules_of(model))

    common = {"OneStep", "Phantom", "Neumann"}
    assert names(jdeq.Broyden(), jdeq.Implicit()) == common | {
        "Implicit (this run)", "SharedInverse", "Unrolled",
    }  # fmt: skip
    assert names(jdeq.NewtonKrylov(), jdeq.OneStep()) == {
        "OneStep (this run)", "Implicit", "Phantom", "Neumann", "SharedInverse, Broyden forward",
    }  # fmt: skip
    assert names(jdeq.Reversible(), jdeq.ReversibleGradient()) == common | {
        "ReversibleGradient (this run)", "Implicit", "SharedInverse, Broyden forward", "Unrolled",
    }  # fmt: skip


def test_a_notch_changes_one_setting_and_holds_the_other_solve():
    rule = jdeq.Implicit(rtol=1e-4)
    model = ScalarDEQ(ScalarDEQConfig(), gradient=rule, rtol=1e-3, max_steps=8)
    held = jdeq.Implicit(rtol=1e-4, max_steps=8)
    assert {
        name: (m.max_steps, m.rtol, m.gradient) for name, m in cheaper.notches(model).items()
    } == {
        OWN: (8, 1e-3, rule),
        "forward budget 8 -> 6": (6, 1e-3, held),
        "forward rtol 0.001 -> 0.01": (8, 1e-2, held),
        "backward budget 8 -> 6": (8, 1e-3, jdeq.Implicit(rtol=1e-4, max_steps=6)),
        "backward rtol 0.0001 -> 0.001": (8, 1e-3, jdeq.Implicit(rtol=1e-3, max_steps=8)),
    }
    coarse = model.clone(gradient=jdeq.Neumann(terms=2), rtol=0.2, max_steps=1)
    assert set(cheaper.notches(coarse)) == {OWN, "backward terms 2 -> 1"}


def gradient(evaluations, products, residual=1e-12):
    return Gradient(np.ones(2), 1.0, evaluations, products, 4.0, residual, residual, 0.1)


def setting(quality, cost, error, cosine=1.0):
    return Setting(quality, 5.0, gradient(cost - 4, 4), Quality(cosine, error))


ROWS = {
    OWN: setting(0.99, 20, 1e-2),
    "a": setting(0.99, 18, 3e-2),
    "b": setting(0.99, 18, 2e-2),
    "c": setting(0.95, 12, 2e-2),
    "d": setting(0.99, 10, 0.5, cosine=0.8),
}


def advice(rows, quality="accuracy", residual=1e-12):
    return cheaper.advice(rows, quality=quality, tests=1000, reference=gradient(1, 1, residual))


def test_advice_is_made_from_the_numbers():
    assert advice(ROWS) == (
        "Take b: it saves 2 of 20 evaluations and products a step (10%); accuracy 99.00% -> "
        "99.00%, relative gradient error 1.0e-02 -> 2.0e-02 (cosine 1.0000)."
    )
    losing = {name: row for name, row in ROWS.items() if name not in "ab"}
    assert "d would save the most, 10 of 20" in advice(losing)
    assert "gradient error would rise from 1.0e-02 to 5.0e-01 (cosine 0.8000)." in advice(losing)
    del losing["d"]
    assert "but accuracy 99.00% -> 95.00%." in advice(losing)
    # Of what is better when it is smaller a rise is a loss, and a fall is none.
    text = {OWN: setting(2.0, 20, 1e-2), "c": setting(2.1, 12, 1e-2)}
    assert "but bits per byte 2.000 -> 2.100." in advice(text, "bits_per_byte")
    text["c"] = setting(1.9, 12, 1e-2)
    assert advice(text, "bits_per_byte").startswith("Take c: it saves 8 of 20")
    assert advice({OWN: ROWS[OWN], "a": ROWS[OWN]}).startswith("Keep the settings: none")


def test_no_advice_without_something_to_judge_by():
    assert advice(ROWS, residual=0.3).startswith("No advice: the tight solve found no fixed point")
    assert advice(ROWS, residual=np.nan).startswith("No advice")
    wrong = ROWS | {OWN: setting(0.99, 20, 7.0, cosine=0.95)}
    assert advice(wrong).startswith("Nothing cheaper yet: at its own settings the gradient")


def test_the_cheapest_rule_that_is_as_good():
    rules = {
        "Implicit (this run)": (gradient(10, 8), Quality(1.0, 1e-2)),
        "OneStep": (gradient(10, 0), Quality(0.95, 0.3)),
        "Neumann": (gradient(10, 4), Quality(0.999, 0.05)),
    }
    assert "Neumann is the cheapest that is as good: 14 evaluations" in cheaper.rule_advice(rules)
    del rules["Neumann"]
    assert cheaper.rule_advice(rules) == ""


def test_a_cell_is_the_problem_that_the_model_poses(scalar):
    run, variables, batch, cell = scalar
    problem = equilibrium_of(run.model, variables, batch.inputs)
    z = jnp.ones_like(problem.z0)
    np.testing.assert_allclose(
        cell.f(cell.params, z, cell.x), problem.f(problem.params, z, problem.x), atol=1e-7
    )
    assert cell.solves == 1 and not cell.causal


def test_no_residual_is_left_out_of_its_histogram():
    residual = np.array([0.0, np.inf, 1e-7, 3e-4, 3.1e-4, 0.4])
    edges, counts = residual_histogram(residual)
    assert counts.sum() == 4 and edges[0] <= 1e-7 * 1.001 and edges[-1] >= 0.4
    np.testing.assert_allclose(np.diff(np.log10(edges)), 0.25)
    assert residual_histogram(np.zeros(3))[1].sum() == 0


@pytest.fixture
def found():
    """By hand; with what is not finite, and a name that HTML would read."""
    trace = np.geomspace(1, 1e-5, 400).reshape(100, 4)
    trace[:, 3] = np.nan
    spectrum = Spectrum(
        residual=np.array([1e-6, 0.5]),
        radius=np.array([0.5, np.nan]),
        eigenvalues=Eigenvalues(
            np.array([[0.3 + 0.4j, 0.3 - 0.4j], [np.nan, np.nan]]),
            np.array([[1e-9, 1e-9], [np.nan, np.nan]]),
        ),
        size=7,
        beta=None,
        rate=None,
    )
    return Findings(
        about={
            "model": "M", "step": 5, "steps": 10, "parameters": 1000, "state_entries": 7,
            "solves_in_the_model": 3, "causal": False, "solver": "S<T>", "gradient": "G",
            "rtol": 1e-3, "max_steps": 8, "test_examples": 9, "examples": 2, "seconds": 3.0,
            "machine": {"device": "CPU", "cpu_cores": 2, "load_average": 0.5,
                        "versions": {"python": "3", "jax": "0"}},
        },
        noun="example",
        quality="accuracy",
        rtol=1e-3,
        samples={
            1e-2: Samples(np.array([3, 3, 9]), np.array([0.0, 1e-3, 0.2]), np.array([0, 0, 1]))
        },
        spectrum=spectrum,
        curves={"Picard": Curve(trace, 1.0, 1e-3, 1e-3)},
        reference=gradient(30, 20),
        reference_by="S<T> in float64",
        rules={
            "Implicit (this run)": (gradient(10, 8), Quality(1.0, 1e-2)),
            "Unrolled": (gradient(10, 8), Quality(np.nan, np.inf)),
            "OneStep": (gradient(10, 0), Quality(0.1, 1e20)),
        },
        settings=ROWS,
        advice="Take <b>.",
    )  # fmt: skip


def test_the_page_needs_nothing_beside_it(found):
    text = page.render(found, name="a & b")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 5 and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "<title>a &amp; b: inspection</title>" in text and "Take &lt;b&gt;." in text
    for grid in tables.grids(found).values():
        assert f">{grid.title}</h2>" in text
        assert all(len(row) == len(grid.heads) for row in grid.rows)
    warnings = re.findall(r'<p class="warning">([^<]*)', text)
    assert any("33.3% of the examples do not reach rtol 0.01" in w for w in warnings)
    assert any("50.0% of the examples were not solved to 1e-05" in w for w in warnings)
    assert "of the first of 3 solves in the model" in text


def with_eigenvalues(found, eigenvalues):
    return replace(found, spectrum=found.spectrum._replace(eigenvalues=eigenvalues))


def test_the_residual_of_a_row_is_that_of_the_eigenvalues_in_it(found):
    upper = np.array([0.9, 0.7, 0.5, 0.3]) + 0.1j * np.arange(1, 5)
    pairs = np.ravel(np.stack([upper, upper.conj()], 1))
    residual = np.repeat([1e-6, 1e-4, 1e-2, 0.1], 2)
    partly = np.array([0.5, 0.25] + 6 * [np.nan]) + 0j
    eigenvalues = Eigenvalues(
        np.stack([pairs, partly]), np.stack([residual, np.where(np.isnan(partly), np.nan, 1e-5)])
    )
    rows = tables.grids(with_eigenvalues(found, eigenvalues))["spectrum"].rows
    assert rows[0][2:] == ["0.90 ± 0.10i, 0.70 ± 0.20i, 0.50 ± 0.30i, 0.30 ± 0.40i", "1e-01"]
    assert rows[1][2:] == ["0.50, 0.25", "1e-05"]


def test_the_picture_of_a_spectrum_leaves_out_what_there_is_not(found):
    values = np.array([[0.3 + 0j, 0.2, np.nan], 3 * [np.nan]])
    eigenvalues = Eigenvalues(values, np.where(np.isnan(values), np.nan, 0.0))
    right = pictures.draw(with_eigenvalues(found, eigenvalues))["spectrum"].axes[1]
    assert [len(points.get_offsets()) for points in right.collections] == [2]
    assert right.get_legend_handles_labels()[1] == ["sample 0, radius 0.30", "unit circle"]


def test_numbers_are_json_and_those_of_the_findings(found):
    numbers = json.loads(json.dumps(as_json(found), allow_nan=False))
    tolerance = numbers["tolerances"]["0.01"]
    assert tolerance["nfe"]["mean"] == 5 and tolerance["nfe"]["median"] == 3
    assert tolerance["nfe_histogram"] == {"3": 2, "9": 1} and tolerance["converged"] == 2 / 3
    assert numbers["solvers"]["Picard"]["share_within_rtol"] == 0.75
    assert numbers["spectrum"]["eigenvalues"]["imaginary"][0] == [0.4, -0.4]
    assert numbers["rules"]["Unrolled"]["relative_error"] is None
    assert numbers["settings"]["c"]["accuracy"] == 0.95 and numbers["settings"]["c"]["cost"] == 12
