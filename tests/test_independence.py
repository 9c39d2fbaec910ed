"""A sample is the same alone, in any batch, and next to a NaN, an expansive and a converged one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import SOLVERS

import jdeq
from jdeq import Status

D = 10
EASY, HARD, NAN, EXPANSIVE, DONE, OTHER = range(6)
RULES = {
    "implicit": jdeq.Implicit(),
    "unrolled": jdeq.Unrolled(),
    "onestep": jdeq.OneStep(),
    "phantom": jdeq.Phantom(),
    "neumann": jdeq.Neumann(),
    "shared": jdeq.SharedInverse(refine=2),
}
LEGAL = [
    (solver, rule)
    for solver in SOLVERS
    for rule in RULES
    if problems.legal(solver, rule) and (rule != "shared" or solver == "broyden")
]


def _batch():
    """Six samples, each with its own matrix: easy, hard, NaN, expansive, solved at z0, another."""
    rng = np.random.default_rng(7)
    spectra = [0.3, 0.9, 0.5, 0.5, 0.5, 0.7]
    w = np.stack([problems.with_spectrum(rng, np.linspace(-r, r, D)) for r in spectra])
    w[EXPANSIVE] = problems.with_spectrum(rng, [-3.0, 4.0, *np.linspace(-0.5, 0.5, D - 2)])
    b = rng.standard_normal((6, D))
    z0 = np.zeros((6, D))
    z0[DONE] = np.linalg.solve(np.eye(D) - w[DONE], b[DONE])
    b[NAN, 3] = np.nan
    return w, b, z0


def _map(params, z, x):
    return jnp.einsum("bij,bj->bi", x["w"], z) * params["gain"] + x["b"]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(solver, rule, steps, gain, x, z0):
    """Values, and the gradient of a per-sample loss for the inputs of each sample."""

    def run(x):
        sol = jdeq.fixed_point(
            _map, {"gain": gain}, z0, x, solver=solver, gradient=rule, rtol=1e-8, max_steps=steps
        )
        return jnp.sum(jnp.cos(jnp.arange(D)) * sol.z + 0.1 * sol.z**2), sol

    grads, sol = jax.grad(run, has_aux=True)(x)
    return sol.z, sol.stats, grads


def _run(samples, solver, rule, steps=60):
    with jax.enable_x64(True):
        w, b, z0 = (jnp.asarray(a[np.asarray(samples)]) for a in _batch())
        out = _solve(SOLVERS[solver], RULES[rule], steps, jnp.float64(1.0), {"w": w, "b": b}, z0)
        return jax.tree.map(np.asarray, out)


def _assert_equal(got, want, i, j, nfe=True):
    """Rounding of one row may differ with the batch size; it is amplified by at most 1e4 here."""
    np.testing.assert_allclose(got[0][i], want[0][j], rtol=1e-9, atol=1e-9)
    assert got[1].status[i] == want[1].status[j]
    if nfe:
        assert got[1].nfe[i] == want[1].nfe[j]
    np.testing.assert_allclose(got[1].residual[i], want[1].residual[j], rtol=1e-2, atol=1e-12)
    for key in ("w", "b"):
        np.testing.assert_allclose(got[2][key][i], want[2][key][j], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("solver", "rule"), LEGAL)
def test_a_sample_alone_and_among_difficult_ones(solver, rule):
    together = _run(range(6), solver, rule)
    alone = {i: _run([i], solver, rule) for i in (EASY, HARD, DONE, OTHER)}
    for i, single in alone.items():
        _assert_equal(together, single, i, 0)
    assert together[1].nfe[DONE] == 1
    assert together[1].status[NAN] == Status.NONFINITE
    assert together[1].status[EASY] == Status.CONVERGED
    if solver == "picard":
        assert together[1].status[EXPANSIVE] in (Status.DIVERGED, Status.MAX_STEPS)
    assert np.all(np.isfinite(together[0]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_order_and_neighbours_do_not_matter(solver):
    together = _run(range(6), solver, "implicit")
    shuffled = _run([OTHER, EXPANSIVE, HARD, NAN, EASY, HARD], solver, "implicit")
    for i, j in ((0, OTHER), (1, EXPANSIVE), (2, HARD), (4, EASY), (5, HARD)):
        # The best of a diverging run is a matter of its last digits.
        if j == EXPANSIVE and solver == "picard":
            continue
        _assert_equal(shuffled, together, i, j)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_short_budget_is_spent_by_each_sample_alone(solver):
    together = _run([EASY, HARD, DONE, OTHER], solver, "implicit", steps=6)
    for i, j in enumerate([EASY, HARD, DONE, OTHER]):
        _assert_equal(together, _run([j], solver, "implicit", steps=6), i, 0)


def _probe_rows(samples, solver):
    with jax.enable_x64(True):
        w, b, z0 = (jnp.asarray(a[np.asarray(samples)]) for a in _batch())

        def run(probe):
            rule = jdeq.Implicit(rtol=1e-8, max_steps=80)
            sol = jdeq.fixed_point(
                _map, {"gain": jnp.float64(1.0)}, z0, {"w": w, "b": b},
                solver=SOLVERS[solver], gradient=rule, rtol=1e-8, max_steps=60, probe=probe,
            )  # fmt: skip
            return jnp.sum(jnp.cos(jnp.arange(D)) * sol.z)

        return np.asarray(jax.jit(jax.grad(run))(jdeq.backward_probe(len(samples))))


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_backward_counts_are_those_of_the_sample_alone(solver):
    together = _probe_rows([EASY, HARD, EXPANSIVE, DONE, OTHER], solver)
    for i, j in enumerate([EASY, HARD, None, DONE, OTHER]):
        if j is not None:
            alone = _probe_rows([j], solver)[0]
            assert together[i, 0] == alone[0]
            np.testing.assert_allclose(together[i, 1], alone[1], rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("rule", ["implicit", "onestep", "phantom", "neumann"])
def test_a_sample_whose_loss_is_masked_leaves_the_parameters_finite(rule):
    """f is NaN for one sample at the start; its loss is not counted; shared parameters learn on."""

    def f(params, z, x):
        return jnp.tanh(z * params + x)

    x = jnp.array([[0.3, 0.4], [0.5, 0.2]])
    params, good = jnp.float32(0.5), jnp.array([True, False])

    def run(params, x):
        z0 = jnp.where(good[:, None], jnp.zeros_like(x), jnp.nan)
        sol = jdeq.fixed_point(f, params, z0, x, gradient=RULES[rule], rtol=1e-6)
        kept = jnp.where((sol.stats.status == Status.CONVERGED)[:, None], sol.z, 0.0)
        return jnp.sum(kept), sol.stats.status

    (_, status) = run(params, x)
    assert status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    with_nan = jax.grad(run, argnums=1, has_aux=True)(params, x)[0]
    alone = jax.grad(
        lambda x: jnp.sum(
            jdeq.fixed_point(f, params, jnp.zeros((1, 2)), x, gradient=RULES[rule], rtol=1e-6).z
        )
    )(x[:1])
    np.testing.assert_allclose(with_nan[0], alone[0], rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_over_single_samples_is_the_batch(solver):
    w, b, z0 = (a[[EASY, HARD, DONE, OTHER]] for a in _batch())
    together = _run([EASY, HARD, DONE, OTHER], solver, "implicit")
    with jax.enable_x64(True):

        def single(w, b, z0):
            def run(x):
                sol = jdeq.fixed_point(
                    lambda p, z, x: x["w"] @ z + x["b"], (), z0, x,
                    solver=SOLVERS[solver], rtol=1e-8, max_steps=60, batch_ndim=0,
                )  # fmt: skip
                return jnp.sum(jnp.cos(jnp.arange(D)) * sol.z + 0.1 * sol.z**2), sol

            grads, sol = jax.grad(run, has_aux=True)({"w": w, "b": b})
            return sol.z, sol.stats, grads

        mapped = jax.jit(jax.vmap(single))(*map(jnp.asarray, (w, b, z0)))
        mapped = jax.tree.map(np.asarray, mapped)
    for i in range(4):
        _assert_equal(mapped, together, i, i)


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_batch_axes_are_one(solver):
    w, b, z0 = (a[[EASY, HARD, DONE, OTHER]] for a in _batch())
    flat = _run([EASY, HARD, DONE, OTHER], solver, "implicit")
    with jax.enable_x64(True):
        w, b, z0 = (jnp.asarray(a.reshape(2, 2, *a.shape[1:])) for a in (w, b, z0))
        sol = jdeq.fixed_point(
            lambda p, z, x: jnp.einsum("abij,abj->abi", x["w"], z) + x["b"], (), z0,
            {"w": w, "b": b}, solver=SOLVERS[solver], rtol=1e-8, max_steps=60, batch_ndim=2,
        )  # fmt: skip
        assert sol.stats.nfe.shape == (2, 2)
        np.testing.assert_array_equal(np.ravel(sol.stats.nfe), flat[1].nfe)
        np.testing.assert_allclose(sol.z.reshape(4, D), flat[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"compact": 2}, {"test_every": 3}], ids=str)
@pytest.mark.parametrize("solver", [jdeq.Picard(), jdeq.Anderson()], ids=repr)
def test_batch_mates_beyond_the_range_of_squares(solver, options):
    """Norms are scaled for the whole batch as soon as one sample needs it, which shows nowhere."""
    rng = np.random.default_rng(3)
    w = problems.with_spectrum(rng, np.linspace(-0.8, 0.8, D)).astype(np.float32)
    scales = np.array([1.0, 1e-30, 1e30, np.nan, 1.0, 1e-25], np.float32)
    # The first, of a single eigenvector, is done early, the fifth late.
    x = rng.standard_normal((len(scales), D)).astype(np.float32) * scales[:, None]
    x[0] = np.linalg.eigh(w)[1][:, D // 2]

    @jax.jit
    def solve(x):
        return jdeq.fixed_point(
            lambda w, z, x: z @ w + x, w, 0 * x, x, solver=solver, rtol=1e-5, max_steps=200,
            **options,
        )  # fmt: skip

    batch = solve(x)
    status = [Status.CONVERGED] * len(scales)
    status[3] = Status.NONFINITE
    if isinstance(solver, jdeq.Anderson):
        status[2] = Status.NONFINITE  # its inner products overflow
    assert batch.stats.status.tolist() == status
    assert batch.stats.nfe[0] < batch.stats.nfe[4]
    for row in range(len(scales)):
        alone = solve(np.repeat(x[row : row + 1], len(scales), axis=0))
        # Fewer samples are another product of matrices, which may round differently.
        close = {"rtol": 1e-6, "atol": 0.0} if "compact" in options else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(batch.z[row], alone.z[row], **close)
        for name in ("nfe", "status"):
            assert getattr(batch.stats, name)[row] == getattr(alone.stats, name)[row], (row, name)
