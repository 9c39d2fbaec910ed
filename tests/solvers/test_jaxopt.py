"""jaxopt solvers standing in as jdeq solvers, against a dense float64 solve."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

import jdeq
from jdeq.solvers.jaxopt import Jaxopt

BATCH, D = 5, 12


def picard(f):
    return jaxopt.FixedPointIteration(f, tol=1e-6)


def anderson(f):
    return jaxopt.AndersonAcceleration(f, tol=1e-6, ridge=1e-8)


def broyden(f):
    return jaxopt.Broyden(lambda z: f(z) - z, tol=1e-6, stepsize=1.0)


BUILDERS = (picard, anderson, broyden)
EACH = pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)


def f(params, z, x):
    return jnp.tanh(z @ params.T + x)


def problem(dtype=np.float32):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(D, D))
    w *= 0.8 / np.linalg.norm(w, 2)
    x = rng.normal(size=(BATCH, D))
    return w.astype(dtype), x.astype(dtype)


def dense_solution():
    """Newton's method and the dense adjoint, in float64: z*, and d sum(sin z*) by W and x."""
    w, x = problem(np.float64)
    z = np.zeros_like(x)
    for _ in range(50):
        fz = np.tanh(z @ w.T + x)
        system = np.eye(D) - (1 - fz**2)[:, :, None] * w
        z = z + np.linalg.solve(system, (fz - z)[..., None])[..., 0]
    adjoint = np.linalg.solve(system.transpose(0, 2, 1), np.cos(z)[..., None])[..., 0]
    slope = adjoint * (1 - z**2)
    return z, np.einsum("bi,bj->ij", slope, z), slope


def relative(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@EACH
def test_forward_and_implicit_gradient(build):
    w, x = problem()
    z, dw, dx = dense_solution()

    @jax.jit
    def loss(w, x):
        sol = jdeq.fixed_point(
            f, w, jnp.zeros_like(x), x, solver=Jaxopt(build=build), rtol=1e-6, max_steps=60
        )
        return jnp.sum(jnp.sin(sol.z)), sol

    (_, sol), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(w, x)
    assert (sol.stats.status == jdeq.Status.CONVERGED).all()
    assert (sol.stats.residual <= 1e-6).all()
    # float32 at rtol 1e-6 and rho <= 0.8: the accuracy asked of jdeq's own solvers.
    assert relative(sol.z, z) < 1e-5
    assert relative(gradients[0], dw) < 1e-4 and relative(gradients[1], dx) < 1e-4


@EACH
def test_counts_are_the_evaluations_made(build):
    w, x = problem()
    calls = []

    def counted(params, z, x):
        jax.debug.callback(lambda _: calls.append(1), z[0, 0])
        return f(params, z, x)

    sol = jdeq.fixed_point(counted, w, jnp.zeros_like(x), x, solver=Jaxopt(build=build), rtol=1e-5)
    jax.effects_barrier()
    # Anderson's own first evaluation is counted by jaxopt and removed by the compiler.
    assert len(calls) in (sol.stats.nfe[0], sol.stats.nfe[0] - 1)
    assert (sol.stats.nfe == sol.stats.nfe[0]).all()


def test_a_second_run_goes_on_where_the_first_stopped():
    w, x = problem()
    short = Jaxopt(build=lambda f: jaxopt.FixedPointIteration(f, maxiter=4, tol=0.0))
    sol = jdeq.fixed_point(f, w, jnp.zeros_like(x), x, solver=short, rtol=1e-5, trace=True)
    assert (sol.stats.status == jdeq.Status.CONVERGED).all()
    assert (sol.stats.nfe % 5 == 1).all() and (sol.stats.nfe > 6).any()
    capped = jdeq.fixed_point(f, w, jnp.zeros_like(x), x, solver=short, rtol=1e-5, max_steps=2)
    assert (capped.stats.status == jdeq.Status.MAX_STEPS).any()
    assert (capped.stats.nfe <= 6).all()


def test_failure_is_reported():
    grows = jdeq.fixed_point(
        lambda p, z, x: 3.0 * z + x, None, jnp.ones((2, 3)), jnp.ones((2, 3)),
        solver=Jaxopt(build=lambda f: jaxopt.FixedPointIteration(f, maxiter=200)),
    )  # fmt: skip
    assert (grows.stats.status != jdeq.Status.CONVERGED).all()
    nan = jdeq.fixed_point(
        lambda p, z, x: z * jnp.nan, None, jnp.ones((2, 3)), None, solver=Jaxopt(build=picard)
    )
    assert (nan.stats.status == jdeq.Status.NONFINITE).all()


def test_second_derivatives():
    with jax.enable_x64(True):
        w, x = problem(np.float64)

        def tight(f):
            return jaxopt.FixedPointIteration(f, tol=1e-12, maxiter=300)

        def loss(scale):
            sol = jdeq.fixed_point(
                f, scale * w, jnp.zeros_like(x), x, solver=Jaxopt(build=tight), rtol=1e-11,
                max_steps=100,
            )  # fmt: skip
            return jnp.sum(jnp.sin(sol.z))

        implicit = jax.grad(loss)
        h = 1e-5
        difference = (implicit(1.0 + h) - implicit(1.0 - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(implicit)(1.0), difference, rtol=1e-7)


def test_adapters_are_values():
    assert Jaxopt(build=picard) == Jaxopt(build=picard) != Jaxopt(build=broyden)
    assert hash(Jaxopt(build=picard)) == hash(Jaxopt(build=picard))


def test_refusals():
    w, x = problem()
    with pytest.raises(TypeError, match="jaxopt.Jaxopt: build must be a function .* got 3"):
        Jaxopt(build=3)
    with pytest.raises(TypeError, match="must return an iterative jaxopt solver; got None"):
        jdeq.fixed_point(f, w, x, x, solver=Jaxopt(build=lambda f: None))
    with pytest.raises(ValueError, match="causal=True needs a solver that can step each position"):
        jdeq.fixed_point(f, w, x, x, solver=Jaxopt(build=picard), causal=True)
