"""A status says what is true: checked against residuals recomputed in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from jax.experimental import checkify
from problems import SOLVERS, TABLE

import jdeq
from jdeq import Status

BATCHED = ("picard", "anderson", "broyden")


def _check_truth(f, params, x, sol, rtol):
    """No sample is called CONVERGED that is not, and the stated residual is that of z."""
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(sol.z))
    true = problems.true_residual(f, params, sol.z, x)
    converged = np.asarray(sol.stats.status) == Status.CONVERGED
    # One part in a thousand: the residual itself is a difference of float32 numbers.
    assert np.all(true[converged] <= rtol * 1.001 + 3e-7), true[converged].max()
    np.testing.assert_allclose(sol.stats.residual, true, rtol=2e-2, atol=5e-7)
    return converged


@pytest.mark.parametrize("solver", SOLVERS)
def test_nan_from_the_first_evaluation(solver):
    def f(params, z, x):
        return jnp.where(x > 0, 0.5 * z + x, jnp.nan)

    x = jnp.array([[1.0, 2.0], [-1.0, 2.0]])
    sol = jdeq.fixed_point(f, (), jnp.ones((2, 2)), x, solver=SOLVERS[solver], rtol=1e-5)
    assert sol.stats.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert np.all(np.isfinite(sol.z))
    assert np.isinf(sol.stats.residual[1])
    np.testing.assert_array_equal(sol.z[1], jnp.ones(2))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_map_that_breaks_later_keeps_the_best_finite_iterate(solver, bad):
    """f is fine near 0 and not finite beyond 3, where the iteration leads; its limit is 20."""

    def f(params, z, x):
        return jnp.where(jnp.any(jnp.abs(z) > 3, axis=-1, keepdims=True), bad, 0.95 * z + x)

    x = jnp.array([[1.0, 0.5], [0.01, -0.01]])
    sol = jdeq.fixed_point(
        f, (), jnp.zeros((2, 2)), x, solver=SOLVERS[solver], rtol=1e-5, max_steps=300
    )
    assert sol.stats.status.tolist() == [Status.NONFINITE, Status.CONVERGED]
    assert np.all(np.isfinite(sol.z))
    _check_truth(f, (), x, sol, 1e-5)


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
@pytest.mark.parametrize("solver", BATCHED)
def test_overflow_is_never_converged(solver, rule):
    """z -> exp(z) + 5 has no fixed point and overflows."""

    def f(params, z, x):
        return jnp.exp(z) + x

    x = jnp.full((3, 2), 5.0)
    sol = jdeq.fixed_point(
        f, (), x, x, solver=SOLVERS[solver], gradient=rule, rtol=1e-3, max_steps=30
    )
    assert not np.any(sol.stats.status == Status.CONVERGED)
    assert np.all(np.isfinite(sol.z))


@pytest.mark.parametrize("scale", [1e-24, 1e-15, 1e15, 1e24])
@pytest.mark.parametrize("solver", SOLVERS)
def test_states_whose_squares_underflow_or_overflow(solver, scale):
    """float32 holds these states, not their squares: a spurious 0 <= 0 must not pass the test."""
    case = TABLE["affine"]
    params, z0, x = case.inputs("float32")
    params, x = params | {"b": scale * params["b"]}, scale * x
    sol = jdeq.fixed_point(case.f, params, z0, x, solver=SOLVERS[solver], rtol=1e-4, max_steps=150)
    true = problems.true_residual(case.f, params, sol.z, x)
    converged = np.asarray(sol.stats.status) == Status.CONVERGED
    assert np.all(true[converged] <= 1.1e-4), (true, sol.stats)
    if solver == "newton":  # which scales what it solves for
        assert np.all(converged)


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("budget", [1, 2, 3, 6])
def test_spent_budget(solver, rule, budget):
    if solver == "newton" and isinstance(rule, jdeq.Unrolled):
        pytest.skip("refused")
    case = TABLE["slow"]
    params, z0, x = case.inputs("float32")
    sol = jdeq.fixed_point(
        case.f, params, z0, x,
        solver=SOLVERS[solver], gradient=rule, rtol=1e-7, max_steps=budget, trace=True,
    )  # fmt: skip
    if solver != "newton":  # may solve an affine map in one step
        assert np.all(sol.stats.status == Status.MAX_STEPS)
    _check_truth(case.f, params, x, sol, 1e-7)
    trace = np.asarray(sol.trace)
    assert trace.shape == (budget, len(z0))
    if isinstance(rule, jdeq.Implicit):
        # At a budget of one a closing evaluation, which nfe counts, decides what is best.
        assert np.all(sol.stats.residual <= np.nanmin(trace, axis=0) * (1 + 1e-6))
        if solver != "newton":
            assert np.all(sol.stats.nfe == max(budget, 2))
    elif solver != "newton":
        assert np.all(sol.stats.nfe == budget + 1)


@pytest.mark.parametrize("budget", [1, 2])
def test_small_budgets_move_when_moving_helps_and_stay_when_it_does_not(budget):
    def f(params, z, x):
        return x * z + 1.0

    x = jnp.array([[0.5], [-3.0]])  # from 0.1: residual falls; from 0.2501: residual grows
    z0 = jnp.array([[0.1], [0.2501]])
    sol = jdeq.fixed_point(f, (), z0, x, solver=jdeq.Picard(), rtol=1e-6, max_steps=budget)
    assert sol.z[0, 0] == f((), z0, x)[0, 0]
    assert sol.z[1, 0] == z0[1, 0]
    _check_truth(f, (), x, sol, 1e-6)


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_hard_sample_among_easy_ones(solver, rule):
    """rho 0.98 once, 0.3 in 63 others: a stop test over the whole batch would hide the hard one."""
    if solver == "newton" and isinstance(rule, jdeq.Unrolled):
        pytest.skip("refused")
    rng = np.random.default_rng(6)
    w = np.stack([problems.with_spectrum(rng, np.linspace(-0.3, 0.3, 12)) for _ in range(64)])
    w[17] = problems.with_spectrum(rng, np.linspace(-0.98, 0.98, 12))
    x = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(rng.standard_normal((64, 12)))}
    x = jax.tree.map(lambda a: a.astype(jnp.float32), x)

    def f(params, z, x):
        return jnp.einsum("bij,bj->bi", x["w"], z) + x["b"]

    def solve(steps):
        return jdeq.fixed_point(
            f, (), jnp.zeros((64, 12)), x,
            solver=SOLVERS[solver], gradient=rule, rtol=1e-5, max_steps=steps,
        )  # fmt: skip

    short = solve(12)
    converged = _check_truth(f, (), x, short, 1e-5)
    assert np.delete(converged, 17).all()
    if solver != "newton":
        assert not converged[17]
    long = solve(900 if solver == "picard" else 100)
    assert _check_truth(f, (), x, long, 1e-5).all()
    assert long.stats.nfe[17] > np.delete(long.stats.nfe, 17).max()
    np.testing.assert_array_equal(np.delete(short.z, 17, 0), np.delete(long.z, 17, 0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["tanh", "symmetric", "pytree", "slow"])
def test_residual_and_status_are_those_of_the_returned_state(solver, name):
    case = TABLE[name]
    params, z0, x = case.inputs("float32")
    for rtol, steps in ((1e-2, 40), (1e-4, 15)):
        sol = jdeq.fixed_point(
            case.f, params, z0, x, solver=SOLVERS[solver], rtol=rtol, max_steps=steps
        )
        converged = _check_truth(case.f, params, x, sol, rtol)
        assert np.array_equal(converged, np.asarray(sol.stats.residual) <= rtol)
        if solver != "newton":
            assert sol.stats.nfe.max() <= steps


def test_absolute_tolerance():
    def f(params, z, x):
        return 0.5 * z + x

    x = jnp.array([[1e-6], [1.0]])
    sol = jdeq.fixed_point(
        f, (), jnp.zeros((2, 1)), x, solver=jdeq.Picard(), rtol=0.0, atol=1e-4, max_steps=8
    )
    assert sol.stats.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]
    assert sol.stats.nfe.tolist() == [1, 8]


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_point_at_the_origin_is_exact(solver):
    sol = jdeq.fixed_point(
        lambda p, z, x: 0.5 * z, (), jnp.zeros((2, 3)), (), solver=SOLVERS[solver]
    )
    assert np.all(sol.stats.status == Status.CONVERGED) and np.all(sol.stats.nfe == 1)
    assert not np.any(sol.stats.residual)


def _report(rule, name="symmetric", rtol=1e-5, batch=4):
    case = TABLE[name]
    params, z0, x = case.inputs("float32")

    def run(params, probe):
        sol = jdeq.fixed_point(
            case.f, params, z0, x, gradient=rule, rtol=rtol, max_steps=100, probe=probe
        )
        return jnp.sum(sol.z * jnp.cos(jnp.arange(16.0)))

    probe = jdeq.backward_probe(*batch) if isinstance(batch, tuple) else jdeq.backward_probe(batch)
    return np.asarray(jax.jit(jax.grad(run, argnums=1))(params, probe))


@pytest.mark.parametrize("solver", SOLVERS)
def test_probe_shows_a_backward_solve_that_failed(solver):
    good = _report(jdeq.Implicit(solver=SOLVERS[solver], max_steps=300))
    assert np.all(good[:, 1] <= 1e-5) and np.all(good[:, 0] >= 3)
    starved = _report(jdeq.Implicit(solver=SOLVERS[solver], max_steps=1))
    assert np.all(starved[:, 1] > 1e-5) or solver == "newton"
    assert np.all(starved[:, 0] < good[:, 0])


def test_probe_shows_a_backward_solve_that_diverged():
    report = _report(jdeq.Implicit(solver=jdeq.Picard(), max_steps=60), name="expansive")
    assert np.all(report[:, 1] > 1e-2)


def test_probe_shows_a_backward_solve_that_is_not_finite():
    case = TABLE["symmetric"]
    params, z0, x = case.inputs("float32")

    def run(probe):
        sol = jdeq.fixed_point(
            lambda p, z, x: case.f(p, jnp.sqrt(z * 0.0) + z, x), params, z0 + 0.1, x,
            rtol=1e-5, max_steps=100, probe=probe,
        )  # fmt: skip
        return jnp.sum(sol.z)

    report = np.asarray(jax.jit(jax.grad(run))(jdeq.backward_probe(4)))  # d sqrt at 0 is infinite
    assert not np.any(report[:, 1] <= 1e-5)


def test_probe_of_the_whole_batch_is_mean_and_worst():
    rows = _report(jdeq.Implicit())
    both = _report(jdeq.Implicit(), batch=())
    np.testing.assert_allclose(both, [rows[:, 0].mean(), rows[:, 1].max()], rtol=1e-5)


def test_trace_holds_the_residual_of_each_step_and_nan_after_the_end():
    case = TABLE["affine"]
    params, z0, x = case.inputs("float32")
    sol = jdeq.fixed_point(
        case.f, params, z0, x, solver=jdeq.Picard(), rtol=1e-3, max_steps=60, trace=True
    )
    z = z0
    for step in range(60):
        want = problems.true_residual(case.f, params, z, x)
        running = step < np.asarray(sol.stats.nfe)
        assert np.array_equal(running, np.isfinite(sol.trace[step]))
        np.testing.assert_allclose(sol.trace[step][running], want[running], rtol=1e-2)
        z = case.f(params, z, x)
    without = jdeq.fixed_point(case.f, params, z0, x, solver=jdeq.Picard(), max_steps=60)
    assert without.trace is None


def test_a_residual_that_passed_stays_in_the_trace():
    """A closing step for batch mates leaves the rows of a sample that was done alone."""
    x = jnp.array([[1.0, 2.0], [1.0, 2.0]])
    z0 = jnp.array([[2.0, 4.0], [0.0, 0.0]])  # the first sample starts at its fixed point

    def solve(gradient, max_steps):
        return jdeq.fixed_point(
            lambda p, z, x: p * z + x, 0.5, z0, x, solver=jdeq.Picard(), gradient=gradient,
            rtol=1e-6, max_steps=max_steps, trace=True,
        )  # fmt: skip

    for gradient, max_steps in ((jdeq.Unrolled(), 4), (jdeq.Implicit(), 1), (jdeq.Unrolled(), 1)):
        trace = np.asarray(solve(gradient, max_steps).trace)
        assert trace[0, 0] == 0 and np.all(np.isnan(trace[1:, 0]))
        # f(z) - z = x - z / 2 at z = 0, x, 1.5 x, 1.75 x, over f(z) = x, 1.5 x, ...
        want = [1, 1 / 3, 1 / 7, 1 / 15][:max_steps]
        np.testing.assert_allclose(trace[:, 1], want, rtol=1e-5)


def test_a_slow_start_near_zero_is_not_called_diverged():
    """tanh(2 z) grows from 1e-9 to its fixed point 0.96: a bounded map."""
    x = jnp.full((1, 2), 1e-9)
    sol = jdeq.fixed_point(
        lambda p, z, x: jnp.tanh(2.0 * z) + x, (), jnp.zeros_like(x), x, solver=jdeq.Picard(),
        rtol=1e-5, max_steps=100,
    )  # fmt: skip
    assert sol.stats.status[0] == Status.CONVERGED
    np.testing.assert_allclose(sol.z, 0.9575, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("solver", [jdeq.Picard(), jdeq.Reversible(beta=0.5)], ids=repr)
def test_states_whose_squares_leave_the_range_of_floats(solver, scale):
    x = jnp.full((2, 3), scale, jnp.float32)
    sol = jdeq.fixed_point(
        lambda p, z, x: p * z + x, 0.5, jnp.zeros_like(x), x, solver=solver, rtol=1e-5, max_steps=80
    )
    assert np.all(sol.stats.status == Status.CONVERGED)
    np.testing.assert_allclose(sol.z / scale, 2.0, rtol=1e-4)


def test_what_shrinks_out_of_the_range_of_squares_is_not_taken_for_nothing():
    """1e-24 of a sudden, where f doubles: its squares are 0 in float32, its residual is not."""

    def f(_, z, x):
        return jnp.where(jnp.abs(z) > 0.5, 1e-24 * x, 2.0 * z)

    x = jnp.ones((2, 4))
    sol = jdeq.fixed_point(f, None, x, x, solver=jdeq.Picard(), max_steps=8)
    assert sol.stats.status.tolist() == [Status.MAX_STEPS] * 2
    np.testing.assert_allclose(sol.stats.residual, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(sol.stats.nfe, 8)


def test_zero_after_one_is_found_to_be_solved():
    sol = jdeq.fixed_point(lambda _, z, x: 0 * z, None, jnp.ones((2, 4)), 0.0, solver=jdeq.Picard())
    assert sol.stats.status.tolist() == [Status.CONVERGED] * 2
    np.testing.assert_array_equal(sol.z, 0)
    assert np.all(sol.stats.residual == 0) and np.all(sol.stats.nfe <= 4)
    one = jdeq.fixed_point(
        lambda _, z, x: 0 * z, None, jnp.ones((2, 4)), 0.0, solver=jdeq.Picard(), max_steps=2
    )
    assert one.stats.status.tolist() == [Status.CONVERGED] * 2 and np.all(one.stats.nfe == 2)


@pytest.mark.parametrize("scale", [1e-19, 1e-25, 1e-38])
def test_what_grows_out_of_the_range_of_squares_is_not_taken_for_infinite(scale):
    """From a tiny state to 1 in a step, and to 1e25, all finite."""

    def f(_, z, x):
        return jnp.where(jnp.abs(z) <= scale, 1.0, jnp.where(z < 1.5, 1e25, z))

    z0 = jnp.full((2, 64), scale)
    sol = jdeq.fixed_point(f, None, z0, 0.0, solver=jdeq.Picard(), max_steps=8)
    assert sol.stats.status.tolist() in ([Status.CONVERGED] * 2, [Status.DIVERGED] * 2)
    assert np.all(np.isfinite(sol.z))


@pytest.mark.parametrize(
    ("solver", "causal", "gradient"),
    [
        (jdeq.Picard(), True, jdeq.Implicit()),
        (jdeq.Anderson(), False, jdeq.Implicit()),
        (jdeq.Anderson(), True, jdeq.Unrolled()),
        (jdeq.Broyden(), False, jdeq.Implicit()),
    ],
    ids=str,
)
def test_testing_less_often_changes_no_result(solver, causal, gradient):
    weight = jnp.array([0.2, 0.5, 0.8])[:, None, None]  # samples that need 5 to 30 steps
    z0, x = jnp.zeros((3, 2, 4)), jax.random.normal(jax.random.key(0), (3, 2, 4))

    def solve(weight, x, test_every):
        sol = jdeq.fixed_point(
            lambda w, z, x: jnp.tanh(w * z + x), weight, z0, x, solver=solver, gradient=gradient,
            rtol=1e-4, max_steps=30, causal=causal, test_every=test_every, trace=True,
        )  # fmt: skip
        return jnp.sum(sol.z**2), sol

    one, *others = (
        jax.jit(jax.value_and_grad(solve, has_aux=True), static_argnums=2)(weight, x, every)
        for every in (1, 7, 30)
    )
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, other)


@pytest.mark.parametrize("test_every", [0, 1.5, True])
def test_test_every_must_be_a_positive_integer(test_every):
    with pytest.raises(ValueError, match="test_every must be"):
        jdeq.fixed_point(
            lambda p, z, x: z, None, jnp.zeros((1, 1)), jnp.zeros(1), test_every=test_every
        )


def test_a_sample_at_rest_in_the_origin_divides_by_nothing():
    def solve(z0):
        return jdeq.fixed_point(lambda _, z, x: z / 2, (), z0, (), rtol=1e-6).stats.residual

    error, residual = checkify.checkify(solve, errors=checkify.all_checks)(jnp.zeros((2, 3)))
    error.throw()
    assert (residual == 0).all()


def test_a_solved_start_near_the_largest_squares_takes_one_evaluation():
    """Its squares overflow, and the next measurement, of the same evaluation, is right."""
    x = jnp.full((1, 4), 1e19, jnp.float32)
    sol = jdeq.fixed_point(
        lambda params, z, x: x + 0 * z, (), x, x, solver=jdeq.Picard(), trace=True
    )
    assert sol.stats.nfe == 1
    assert sol.stats.status == jdeq.Status.CONVERGED
    assert sol.trace is not None
    assert sol.trace[0, 0] == 0


@pytest.mark.parametrize("solver", [jdeq.Anderson(), jdeq.RestartedAnderson()], ids=str)
def test_a_sample_whose_products_overflow_is_told_so_at_once(solver):
    x = jnp.array([[1e20] * 3, [1.0] * 3], jnp.float32)
    sol = jdeq.fixed_point(
        lambda params, z, x: x + 0.5 * z, (), jnp.zeros_like(x), x, solver=solver, rtol=1e-4
    )
    assert sol.stats.status.tolist() == [jdeq.Status.NONFINITE, jdeq.Status.CONVERGED]
    assert sol.stats.nfe[0] <= 3
    np.testing.assert_allclose(sol.z[1], 2.0, rtol=1e-3)
