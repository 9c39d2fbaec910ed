"""bfloat16 and float16 states: a warning when rtol is out of reach, a stop at stagnation."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import SOLVERS, TABLE

import jdeq
from jdeq import Status

DTYPES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # half a unit in the last place
NAMES = ["affine", "tanh", "symmetric"]


def _solve(name, solver, dtype, rtol, max_steps=300, **options):
    case = TABLE[name]
    params, z0, x = case.inputs(dtype)
    return case, jdeq.fixed_point(
        case.f, params, z0, x, solver=SOLVERS[solver], rtol=rtol, max_steps=max_steps, **options
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NAMES)
def test_out_of_reach_warns_and_stops(name, solver, dtype):
    with pytest.warns(UserWarning, match="below the resolution"):
        case, sol = _solve(name, solver, dtype, 1e-5)
    assert sol.z.dtype == dtype and sol.stats.residual.dtype == jnp.float32
    # Picard needs log(resolution) / log(rho) evaluations: 70 at rho 0.92 in bfloat16 or float16.
    # A step of NewtonKrylov costs up to 32.
    assert sol.stats.nfe.max() <= (120 if solver == "picard" else 60 if solver != "newton" else 320)
    # It ends exactly (the rounded map has a fixed point) or stagnates, and then is not CONVERGED.
    exact = np.asarray(sol.stats.residual) <= 1e-5
    assert np.array_equal(np.asarray(sol.stats.status) == Status.CONVERGED, exact)
    assert np.all((sol.stats.status == Status.MAX_STEPS) | exact)
    # Within a few roundings of what the dtype holds; f itself rounds W z + U x + b several times.
    assert np.all(sol.stats.residual <= 6 * DTYPES[dtype])
    with jax.enable_x64(True):
        params, _, x = case.inputs(jnp.float64)
        want = np.asarray(problems.truth(name)[0])
    z = np.asarray(sol.z.astype(jnp.float32), np.float64)
    assert problems.error(z, want) <= 20 * DTYPES[dtype] / case.gap


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-2), ("float64", 1e-6)])
def test_slow_progress_is_not_stagnation(dtype, atol):
    """``z = 0.995 z + 1`` by plain iteration, half a percent a step, at rtol 0 forward and back."""
    with jax.enable_x64(True):
        one = jnp.ones((1, 4), dtype)

        def solve(p):
            return jdeq.fixed_point(
                lambda p, z, x: p * z + x, p, 0 * one, one,
                solver=jdeq.Picard(), gradient=jdeq.Implicit(rtol=0.0), rtol=0.0, atol=atol,
                max_steps=10_000,
            )  # fmt: skip

        gradient, sol = jax.grad(lambda p: (jnp.sum(solve(p).z), solve(p)), has_aux=True)(
            jnp.asarray(0.995, dtype)
        )
        assert np.all(sol.stats.status == Status.CONVERGED)
        # |f(z) - z| = 0.005 |z - 200| for each of the four entries.
        np.testing.assert_allclose(sol.z, 200.0, atol=1.01 * atol / 0.005 / 2)
        np.testing.assert_allclose(gradient, 4 / 0.005**2, rtol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_within_reach_converges_without_a_warning(solver, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, sol = _solve("affine", solver, dtype, 8 * DTYPES[dtype], 100)
    assert np.all(sol.stats.status == Status.CONVERGED)
    assert np.all(sol.stats.residual <= 8 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_in_low_precision(solver, dtype):
    case, (_, _, want) = TABLE["affine"], problems.truth("affine")
    params, z0, x = case.inputs(dtype)

    @jax.jit
    def gradient(params, x, probe):
        def run(params, x, probe):
            begin = problems.start(params, z0)
            sol = jdeq.fixed_point(
                case.f, params, begin, x,
                solver=SOLVERS[solver], rtol=4 * DTYPES[dtype], max_steps=200, probe=probe,
            )  # fmt: skip
            return problems.loss(sol.z.astype(jnp.float32), begin.astype(jnp.float32))

        return jax.grad(run, argnums=(0, 1, 2))(params, x, probe)

    *grads, report = gradient(params, x, jdeq.backward_probe())
    assert all(g.dtype == dtype for g in jax.tree.leaves(grads))
    wide = jax.tree.map(lambda g: np.asarray(g.astype(jnp.float32)), tuple(grads))
    # Two residuals of 4 units, divided by the gap 0.2, and sums over 4 samples in low precision.
    assert problems.error(wide, want) <= 30 * DTYPES[dtype] / case.gap
    assert report[0] < 200 and report[1] <= 8 * DTYPES[dtype]


def test_the_warning_comes_at_trace_time_and_once_per_trace():
    case = TABLE["affine"]
    params, z0, x = case.inputs("bfloat16")
    solve = jax.jit(lambda p, x: jdeq.fixed_point(case.f, p, z0, x, rtol=1e-5).z)
    with pytest.warns(UserWarning, match="below the resolution") as caught:
        solve(params, x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(params, x)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float16", 1e-3)])
def test_reachable_tolerances_do_not_warn(dtype, rtol):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _solve("affine", "anderson", dtype, rtol)


def test_unreachable_tolerance_in_float32_warns_and_stops():
    with pytest.warns(UserWarning, match="below the resolution"):
        _, sol = _solve("affine", "anderson", "float32", 1e-9, 500)
    assert sol.stats.nfe.max() <= 60
    assert np.all(sol.stats.residual <= 1e-6)


def test_zero_tolerance_stops_too():
    with pytest.warns(UserWarning, match="below the resolution"):
        _, sol = _solve("tanh", "picard", "bfloat16", 0.0, 500)
    assert sol.stats.nfe.max() <= 60


@pytest.mark.parametrize("solver", SOLVERS)
def test_mixed_dtypes_in_one_state(solver):
    """A float32 leaf beside a bfloat16 one: dtypes are kept, the coarser one sets the limit."""
    case = TABLE["pytree"]
    params, z0, x = case.inputs("float32")
    z0 = {"a": z0["a"].astype(jnp.bfloat16), "b": z0["b"]}
    with pytest.warns(UserWarning, match="below the resolution"):
        sol = jdeq.fixed_point(case.f, params, z0, x, solver=SOLVERS[solver], rtol=1e-4)
    assert sol.z["a"].dtype == jnp.bfloat16 and sol.z["b"][0].dtype == jnp.float32
    assert np.all(sol.stats.residual <= 6 * DTYPES["bfloat16"])
