"""Counting, timing and the dense oracles of the benchmark."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import harness
from experiments.bench.harness import Case, count, measure, quartiles, ratios
from experiments.bench.picard import picard
from experiments.bench.problems import (
    loss_of,
    mdeq,
    mixed,
    problem_a,
    problem_b,
    transformer,
    two_layer,
)
from experiments.bench.truth import CHECKED, TanhTruth

pytestmark = pytest.mark.compiles


def repeat(steps):
    return lambda f: lambda p, z, x: jax.lax.fori_loop(0, steps, lambda _, z: f(p, z, x), z)


def double(params, z, x):
    return params * z + x


ARGS = (jnp.float32(0.5), jnp.ones(3), jnp.ones(3))


def test_count_evaluations():
    assert count(repeat(7), double, ARGS) == {"evaluations": 7, "products": 0, "jvps": 0}


def test_count_products_and_jvps():
    def vjp_loop(f):
        def run(p, z, x):
            _, product = jax.vjp(lambda z: f(p, z, x), z)
            return jax.lax.fori_loop(0, 5, lambda _, v: product(v)[0], z)

        return run

    def jvp_loop(f):
        def run(p, z, x):
            _, product = jax.linearize(lambda z: f(p, z, x), z)
            return jax.lax.fori_loop(0, 4, lambda _, v: product(v), z)

        return run

    assert count(vjp_loop, double, ARGS) == {"evaluations": 1, "products": 5, "jvps": 0}
    assert count(jvp_loop, double, ARGS) == {"evaluations": 1, "products": 0, "jvps": 4}


def case(name, make, reference="one", check=lambda output: {}):
    return Case(
        group="g", name=name, make=make, f=double, args=ARGS, reference=reference, check=check
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_measure_reports_every_case(workers, monkeypatch):
    monkeypatch.setattr(harness, "side_by_side", lambda: workers)
    cases = [
        case("one", repeat(1), check=lambda z: {"first": float(z[0])}),
        case("many", repeat(50)),
        case("broken", lambda f: lambda p, z, x: jnp.zeros(2) + z),
    ]
    one, many, broken = results = measure(cases, rounds=3, round_seconds=1e-4)
    assert one.facts == {"first": 1.5}
    assert many.counts["evaluations"] == 50
    assert len(one.seconds) == len(many.seconds) == len(ratios(many, results)) == 3
    assert one.compile_seconds > 0
    assert broken.seconds == [] and broken.error.startswith("TypeError: ")
    assert quartiles([1.0, 2.0, 3.0]) == (2.0, 1.5, 2.5)


def test_measure_refuses_what_does_not_fit():
    def big(f):
        return lambda p, z, x: jnp.linalg.inv(jnp.eye(600) + f(p, z, x)[0])

    (result,) = measure([case("one", big)], rounds=1, temp_limit_mib=1.0)
    assert result.seconds == [] and result.error.startswith("not run: needs")


def test_unknown_reference_is_an_error():
    results = measure([case("one", repeat(1), reference="none")], rounds=1)
    with pytest.raises(ValueError, match="has no case 'none'"):
        ratios(results[0], results)


@pytest.mark.parametrize("make", [problem_a, problem_b])
def test_truth_against_finite_differences(make):
    problem = make(batch=3, width=16)
    truth = problem.known
    assert truth.residual(truth.z)["residual_worst_sample"] < 1e-12
    gradient, step = truth.gradient(), 1e-5

    def loss(key, index, change):
        params = {k: np.array(v, np.float64) for k, v in problem.params.items()}
        params[key][index] += change
        return np.mean(TanhTruth(params, problem.x).z ** 2)

    for key, index in (("w", (1, 2)), ("u", (3, 4)), ("b", (5,))):
        difference = (loss(key, index, step) - loss(key, index, -step)) / (2 * step)
        assert gradient[key][index] == pytest.approx(difference, rel=1e-6)
    assert truth.gradient_error(gradient) == 0.0
    assert truth.gradient_error({k: 1.01 * v for k, v in gradient.items()}) == pytest.approx(0.01)


def test_problems_are_as_described():
    a, b = problem_a(batch=CHECKED), problem_b(batch=CHECKED)
    assert a.known.spectral_radius() == pytest.approx(0.63, abs=0.04)
    assert b.known.spectral_radius() == pytest.approx(0.92, abs=0.02)
    w = np.asarray(b.params["w"])
    np.testing.assert_allclose(w, w.T, atol=1e-6)
    assert np.abs(np.linalg.eigvalsh(w)).max() == pytest.approx(0.95, rel=1e-5)


@pytest.mark.parametrize(
    "problem",
    [
        partial(problem_a, batch=4, width=32),
        partial(problem_b, batch=4, width=32),
        partial(mixed, batch=16, width=16),
        partial(transformer, batch=2, tokens=4, width=8, heads=2),
        pytest.param(partial(mdeq, batch=2, side=4, channels=(4, 4)), marks=pytest.mark.slow),
    ],
)
def test_hand_written_picard(problem):
    """Solution and gradient are those of the truth, by which all others are checked."""
    problem = problem()
    truth = problem.known

    def loss(params, x):
        z = picard(problem.f, params, problem.z0, x, 1e-6, 500)
        return loss_of(z, problem.power), z

    (_, z), gradient = jax.value_and_grad(loss, has_aux=True)(problem.params, problem.x)
    assert truth.residual(z)["residual_worst_sample"] <= 1.1e-6  # float32 rounding of the test
    assert truth.gradient_error(gradient) <= 1e-4


def test_two_layer_map_is_contractive():
    problem = two_layer(2, 4, 8, 16)
    z, steps = problem.z0, 0
    while steps < 200 and (jnp.abs(problem.f(problem.params, z, problem.x) - z) > 1e-5).any():
        z, steps = problem.f(problem.params, z, problem.x), steps + 1
    assert steps < 200
