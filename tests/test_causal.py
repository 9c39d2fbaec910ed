"""``causal=True``: an output does not depend on later inputs, bit for bit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from jax.flatten_util import ravel_pytree

import jdeq
from jdeq import Status

BATCH, LENGTH, WIDTH = 2, 12, 8
IMPLICIT = jdeq.Implicit()
CAUSAL = {
    "picard": jdeq.Picard(),
    "anderson": jdeq.Anderson(),
    "restarted": jdeq.RestartedAnderson(),
    "broyden": jdeq.Broyden(),
}


def cell(params, z, x):
    """One head of causal attention and a projection, a contraction at these weights."""
    q, k, v = (z @ params[name] for name in ("q", "k", "v"))
    scores = jnp.einsum("bid,bjd->bij", q, k) / np.sqrt(z.shape[-1])
    past = jnp.tril(jnp.ones((z.shape[1],) * 2, bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf), axis=-1)
    return jnp.tanh(z @ params["w"] + jnp.einsum("bij,bjd->bid", weights, v) + x)


def _inputs(dtype="float32"):
    rng = np.random.default_rng(10)
    params = {
        "w": problems.random_matrix(rng, WIDTH, 0.6),
        **{name: 0.3 * rng.standard_normal((WIDTH, WIDTH)) for name in "qkv"},
    }
    x = rng.standard_normal((BATCH, LENGTH, WIDTH))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, jnp.zeros_like(x), x))


def _changed(x, t):
    """x with everything after position t replaced."""
    other = 3.0 * np.random.default_rng(t).standard_normal(x.shape)
    return x.at[:, t + 1 :].set(jnp.asarray(other[:, t + 1 :], x.dtype))


@functools.partial(jax.jit, static_argnames=("solver", "gradient", "rtol", "max_steps", "causal"))
def _solve(params, z0, x, *, solver, max_steps, rtol=1e-9, causal=True, gradient=IMPLICIT):
    return jdeq.fixed_point(
        cell, params, z0, x,
        solver=solver, gradient=gradient, rtol=rtol, max_steps=max_steps, causal=causal,
    )  # fmt: skip


@pytest.mark.usefixtures("optimized")  # the program that users run
@pytest.mark.filterwarnings("ignore:.*below the resolution")
@pytest.mark.parametrize("gradient", [jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
@pytest.mark.parametrize("budget", [3, 6, 12])
@pytest.mark.parametrize("solver", CAUSAL)
def test_no_output_sees_a_later_input(solver, budget, gradient):
    params, z0, x = _inputs()
    run = functools.partial(
        _solve, params, z0, solver=CAUSAL[solver], max_steps=budget, gradient=gradient
    )
    before = run(x)
    for t in (0, 4, LENGTH - 2):
        after = run(_changed(x, t))
        np.testing.assert_array_equal(after.z[:, : t + 1], before.z[:, : t + 1])
        for a, b in zip(after.stats, before.stats, strict=True):
            np.testing.assert_array_equal(a[:, : t + 1], b[:, : t + 1])
        assert not np.array_equal(after.z[:, t + 1 :], before.z[:, t + 1 :])


@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
@pytest.mark.parametrize("solver", CAUSAL)
def test_stopping_early_leaks_nothing(solver, rtol):
    """Positions end at different times, and the loop with the slowest: also at x = 0 after t."""
    params, z0, x = _inputs()
    run = functools.partial(_solve, params, z0, solver=CAUSAL[solver], max_steps=80, rtol=rtol)
    before = run(x)
    assert np.all(before.stats.status == Status.CONVERGED)
    for t in (0, 5):
        for later in (_changed(x, t), x.at[:, t + 1 :].set(0.0), x.at[:, t + 1 :].mul(1e3)):
            after = run(later)
            np.testing.assert_array_equal(after.z[:, : t + 1], before.z[:, : t + 1])
            np.testing.assert_array_equal(after.stats.nfe[:, : t + 1], before.stats.nfe[:, : t + 1])


def test_whole_sequence_anderson_leaks():
    """The negative control: mixing over the sequence moves earlier outputs."""
    params, z0, x = _inputs()
    run = functools.partial(
        _solve, params, z0, solver=jdeq.Anderson(), max_steps=6, causal=False, rtol=1e-6
    )
    before, after = run(x).z, run(_changed(x, 5)).z
    assert np.abs(after[:, :6] - before[:, :6]).max() > 1e-5


@pytest.mark.parametrize("solver", CAUSAL)
def test_a_later_nan_stays_where_it_is(solver):
    """A map of each position alone: NaN at position 7 is no position's business before it."""
    params, z0, x = _inputs()

    def f(params, z, x):
        return jnp.tanh(z @ params["w"] + x)

    def run(x):
        return jdeq.fixed_point(
            f, params, z0, x, solver=CAUSAL[solver], rtol=1e-4, max_steps=30, causal=True
        )

    before, after = run(x), run(x.at[:, 7].set(jnp.nan))
    np.testing.assert_array_equal(after.z[:, :7], before.z[:, :7])
    np.testing.assert_array_equal(after.stats.status[:, :7], before.stats.status[:, :7])
    assert np.all(after.stats.status[:, 7] == Status.NONFINITE)
    assert np.all(np.isfinite(after.z))


def test_gradients_of_a_sequence_with_a_position_that_is_not_finite_are_nan():
    """Of that sequence alone, and not finite numbers that no rule stands for."""
    params, z0, x = _inputs()

    def loss(x):
        sol = _solve(params, z0, x, solver=jdeq.Anderson(), rtol=1e-5, max_steps=60)
        return jnp.sum(sol.z[:, :5] ** 2)

    want, got = jax.grad(loss)(x), jax.grad(loss)(x.at[1, 7].set(jnp.nan))
    np.testing.assert_array_equal(got[0], want[0])
    assert np.isfinite(want).all() and np.isnan(got[1, :5]).all()


def test_a_start_that_is_not_finite_is_its_own_position_s_business():
    params, z0, x = _inputs()
    run = functools.partial(_solve, params, x=x, solver=jdeq.Anderson(), max_steps=30, rtol=1e-4)
    whole, broken = run(z0), run(z0.at[:, 7].set(jnp.nan))
    np.testing.assert_array_equal(broken.z[:, :7], whole.z[:, :7])
    np.testing.assert_array_equal(broken.stats.status[:, :7], whole.stats.status[:, :7])
    np.testing.assert_array_equal(broken.stats.status[:, 7], Status.NONFINITE)
    assert np.isfinite(broken.z).all() and np.all(broken.stats.residual[:, 7] == np.inf)


def _residuals(params, z, x):
    """Relative residual of each position, float64."""
    return problems.true_residual(cell, params, z, x, ndim=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Breaking(jdeq.Picard):
    """Picard, which proposes NaN at one position in its third step."""

    at: int

    def step(self, f, state, *, ndim):
        steps = state.z["steps"][:, :, None]
        broken = (steps == 2) & (jnp.arange(LENGTH)[:, None] == self.at)
        z = {"z": jnp.where(broken, jnp.nan, state.fz["z"]), "steps": state.fz["steps"]}
        return state._replace(z=z, fz=f(z))


def test_a_nan_that_a_solver_proposes_stays_where_it_is():
    """Attention multiplies it by masked zeros, were f to see it."""
    params, z0, x = _inputs()

    def f(params, z, x):
        return {"z": cell(params, z["z"], x), "steps": z["steps"] + 1}

    def run(solver):
        start = {"z": z0, "steps": jnp.zeros(z0.shape[:2])}
        return jax.jit(
            lambda: jdeq.fixed_point(
                f, params, start, x, solver=solver, rtol=1e-6, max_steps=8, causal=True
            )
        )()

    whole, broken = run(jdeq.Picard()), run(Breaking(at=5))
    np.testing.assert_array_equal(broken.z["z"][:, :5], whole.z["z"][:, :5])
    np.testing.assert_array_equal(broken.stats.nfe[:, :5], whole.stats.nfe[:, :5])
    np.testing.assert_array_equal(broken.stats.status[:, 5], Status.NONFINITE)
    assert np.isfinite(broken.z["z"]).all()
    assert not np.any(broken.stats.status[:, 6:] == Status.NONFINITE)


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
@pytest.mark.parametrize("budget", [1, 2, 5, 80])
@pytest.mark.parametrize("solver", CAUSAL)
def test_causal_statistics_are_true(solver, budget, rtol):
    """One entry per position; what is called CONVERGED is so in the state that is returned."""
    params, z0, x = _inputs()
    sol = _solve(params, z0, x, solver=CAUSAL[solver], max_steps=budget, rtol=rtol)
    assert sol.stats.nfe.shape == (BATCH, LENGTH)
    true = _residuals(params, sol.z, x)
    converged = np.asarray(sol.stats.status) == Status.CONVERGED
    assert np.all(true[converged] <= rtol * 1.01 + 1e-6)
    np.testing.assert_allclose(sol.stats.residual, true, rtol=2e-2, atol=1e-6)
    assert np.all(np.diff(np.asarray(sol.stats.nfe), axis=1) >= 0)
    if budget == 80:
        assert converged.all()


@pytest.mark.parametrize("budget", [1, 2, 3, 80])
@pytest.mark.parametrize("solver", CAUSAL)
def test_causal_statistics_are_true_of_states_whose_squares_overflow(solver, budget):
    """What is not measured yet is returned with the residual of what is returned."""
    params, z0, x = _inputs()
    size = 2.0**70

    def huge(params, z, x):
        return size * cell(params, z / size, x)

    sol = jdeq.fixed_point(
        huge, params, z0, x, solver=CAUSAL[solver], max_steps=budget, rtol=1e-4, causal=True
    )
    true = problems.true_residual(huge, params, sol.z, x, ndim=2)
    np.testing.assert_allclose(sol.stats.residual, true, rtol=2e-2, atol=1e-6)
    if budget == 80 and solver == "picard":  # the others' inner products overflow too
        assert np.all(np.asarray(sol.stats.status) == Status.CONVERGED)


@pytest.mark.parametrize("solver", CAUSAL)
def test_a_position_whose_map_overflows_is_its_own_business(solver):
    """f(z) is infinite at position 2: what is returned for it is finite, with its residual."""
    x = jnp.asarray([0.1, 0.1, 3.0, 0.1])[None, :, None]
    mix = 0.01 * jnp.tril(jnp.ones((4, 4)), -1)

    def f(p, z, x):
        return jnp.exp(p * z) * x + jnp.einsum("ij,bjd->bid", mix, z)

    def loss(p):
        sol = jdeq.fixed_point(
            f, p, jnp.zeros_like(x), x, solver=CAUSAL[solver], rtol=1e-4, max_steps=30, causal=True,
            gradient=jdeq.Implicit(solver=jdeq.Picard()),
        )  # fmt: skip
        return jnp.sum(sol.z[:, :2]), sol

    gradient, sol = jax.grad(loss, has_aux=True)(1.0)
    assert np.all(np.asarray(sol.stats.status[:, :2]) == Status.CONVERGED)
    assert np.isfinite(gradient) and np.isfinite(sol.z).all()
    true = problems.true_residual(f, 1.0, sol.z, x, ndim=2)
    # Not of a later position that ends non-finite as well: its residual is that of its own last
    # finite evaluation, when position 2 was another.
    known = np.asarray(sol.stats.status) == Status.CONVERGED
    known[:, 2] = True
    np.testing.assert_allclose(sol.stats.residual[known], true[known], rtol=2e-2, atol=1e-6)


def _dense_gradient():
    """d loss / d (params, x) by a dense solve over a whole sequence at a time, float64."""
    params, z0, x = _inputs(jnp.float64)
    z = jax.lax.fori_loop(0, 400, lambda _, z: cell(params, z, x), z0)
    flat, unravel = ravel_pytree(z)
    jacobian = jax.jacfwd(lambda a: ravel_pytree(cell(params, unravel(a), x))[0])(flat)
    ct = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
    w = jnp.linalg.solve(jnp.eye(flat.size) - jacobian.T, ct)
    return jax.vjp(lambda p, x: cell(p, z, x), params, x)[1](unravel(w))


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Implicit(solver=jdeq.NewtonKrylov())])
@pytest.mark.parametrize("solver", CAUSAL)
def test_gradients_of_a_causal_solve(solver, rule):
    with jax.enable_x64(True):
        params, z0, x = _inputs(jnp.float64)

        def run(params, x):
            z = _solve(
                params, z0, x,
                solver=CAUSAL[solver], max_steps=150, rtol=1e-9, gradient=rule,
            ).z  # fmt: skip
            return jnp.sum(jnp.cos(jnp.arange(z.size)).reshape(z.shape) * z)

        got = jax.jit(jax.grad(run, argnums=(0, 1)))(params, x)
        assert problems.error(got, jax.tree.map(np.asarray, _dense_gradient())) <= 1e-6


def test_causal_needs_a_solver_that_steps_each_position():
    params, z0, x = _inputs()
    with pytest.raises(ValueError, match="causal=True needs a solver.*Picard"):
        jdeq.fixed_point(cell, params, z0, x, solver=jdeq.NewtonKrylov(), causal=True)


def test_causal_needs_a_sequence_axis():
    with pytest.raises(ValueError, match="must share their first 2 axes"):
        jdeq.fixed_point(lambda p, z, x: z, (), jnp.zeros(3), (), causal=True)


@pytest.mark.parametrize("solver", CAUSAL)
def test_an_empty_sequence(solver):
    x = jnp.zeros((4, 0, 6))
    sol = jdeq.fixed_point(
        lambda params, z, x: jnp.tanh(0.5 * z + x), (), x, x, solver=CAUSAL[solver], causal=True
    )
    assert sol.z.shape == (4, 0, 6)
    assert sol.stats.status.shape == (4, 0)
