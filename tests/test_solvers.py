"""What the solvers must reach, in counted evaluations, and that a step is what its formula says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import ACCELERATED, SOLVERS, TABLE

import jdeq
from jdeq import tree


def _scaled(f, s):
    return lambda params, z, x: s * f(params, z / s, x)


@functools.cache
def _gradient_on_b(solver: str):
    """One program for all scales: another program may round differently."""
    case = problems.full_b()

    def run(params, probe, z0, x, loss_scale, state_scale):
        sol = jdeq.fixed_point(
            _scaled(case.f, state_scale), params, z0, x,
            solver=SOLVERS[solver], rtol=1e-5, max_steps=100, probe=probe,
        )  # fmt: skip
        return loss_scale * jnp.mean((sol.z / state_scale) ** 2), sol.stats

    return jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))


def _counts(solver: str, loss_scale: float = 1.0, state_scale: float = 1.0):
    """Problem B at rtol 1e-5: forward stats, and (products, residual) of each sample's adjoint."""
    params, z0, x = problems.full_b().inputs("float32")
    (_, report), stats = _gradient_on_b(solver)(
        params, jdeq.backward_probe(64), z0, x, loss_scale, state_scale
    )
    return jax.tree.map(np.asarray, stats), np.asarray(report)


# The asked counts for the slowest of 64 samples.
@pytest.mark.parametrize(("solver", "most"), [("anderson", 40), ("restarted", 34), ("broyden", 48)])
def test_evaluations_on_b(solver, most):
    stats, report = _counts(solver)
    assert np.all(stats.status == jdeq.Status.CONVERGED)
    assert np.all(report[:, 1] <= 1e-5)
    assert stats.nfe.max() <= most
    assert report[:, 0].max() <= most


@pytest.mark.parametrize(("solver", "most"), [("anderson", 40), ("restarted", 34), ("broyden", 48)])
@pytest.mark.parametrize(("loss_scale", "state_scale"), [(1e-6, 1.0), (1.0, 1e-4)])
def test_evaluations_on_b_do_not_depend_on_scales(solver, most, loss_scale, state_scale):
    stats, report = _counts(solver)
    scaled_stats, scaled_report = _counts(solver, loss_scale, state_scale)
    assert np.all(scaled_stats.status == jdeq.Status.CONVERGED)
    assert np.all(scaled_report[:, 1] <= 1e-5)
    assert scaled_stats.nfe.max() <= most
    assert scaled_report[:, 0].max() <= most
    # Broyden restarts after 20 steps, and what follows depends on rounding: see the next test.
    within = 2 if solver == "anderson" else 5
    assert abs(int(scaled_stats.nfe.max()) - int(stats.nfe.max())) <= within
    assert abs(scaled_report[:, 0].max() - report[:, 0].max()) <= within


@pytest.mark.parametrize("solver", ["anderson", "restarted", "broyden"])
def test_scaling_by_a_power_of_two_changes_nothing(solver):
    """Where rounding does not change, no count does."""
    (plain, plain_probe), (scaled, scaled_probe) = (
        _counts(solver),
        _counts(solver, 2.0**-20, 2.0**-13),
    )
    np.testing.assert_array_equal(plain, scaled)
    np.testing.assert_array_equal(plain_probe[:, 0], scaled_probe[:, 0])


@pytest.mark.parametrize("name", ["rotation", "complex", "expansive"])
@pytest.mark.parametrize("solver", ACCELERATED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rotations_and_expansive_maps_are_solved(solver, name, dtype):
    case, rtol = TABLE[name], {"float32": 1e-5, "float64": 1e-9}[dtype]
    with jax.enable_x64(dtype == "float64"):
        inputs = case.inputs(dtype)
        # Five columns are few for eight pairs: Anderson needs 130 steps on "complex" in float64.
        sol = jdeq.fixed_point(case.f, *inputs, solver=SOLVERS[solver], rtol=rtol, max_steps=300)
        assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
        # |1 - lambda| >= 0.29 and normal maps: the error is under four residuals.
        assert problems.error(sol.z, problems.truth(name)[0]) <= 10 * rtol


def test_picard_does_not_solve_the_expansive_map():
    case = TABLE["expansive"]
    sol = jdeq.fixed_point(
        case.f, *case.inputs("float32"), solver=jdeq.Picard(), rtol=1e-5, max_steps=300
    )
    assert np.all(sol.stats.status == jdeq.Status.DIVERGED)
    assert np.all(np.isfinite(sol.z))


def test_damped_picard_solves_a_map_with_a_negative_eigenvalue_beyond_minus_one():
    w = problems.with_spectrum(np.random.default_rng(3), np.linspace(-2.5, 0.5, 8))
    params, x = jnp.asarray(w, jnp.float32), jnp.ones((2, 8))

    def f(params, z, x):
        return z @ params.T + x

    sol = jdeq.fixed_point(
        f, params, jnp.zeros_like(x), x, solver=jdeq.Picard(damping=0.5), rtol=1e-5, max_steps=200
    )
    assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
    want = np.linalg.solve(np.eye(8) - w, np.ones(8))
    assert problems.error(sol.z, np.stack([want, want])) <= 1e-4


def _iterates(solver, f, z0, n):
    """The first n points at which f is evaluated, by the public interface of a solver, float64."""
    state = jax.jit(functools.partial(solver.init, f, ndim=0))(z0)
    step = jax.jit(functools.partial(solver.step, f, ndim=0))
    points = [state.z]
    for _ in range(n - 1):
        state = step(state)
        points.append(state.z)
    return np.stack(points)


def _tanh(seed=4, d=12):
    rng = np.random.default_rng(seed)
    w, b = problems.random_matrix(rng, d, 0.8), rng.standard_normal(d)
    return (lambda z: jnp.tanh(jnp.asarray(w) @ z + b)), (lambda z: np.tanh(w @ z + b)), d


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("depth", [2, 3])
def test_restarted_anderson_steps_are_constrained_least_squares(depth, damping):
    f, numpy_f, d = _tanh()
    with jax.enable_x64(True):
        solver = jdeq.RestartedAnderson(depth=depth, damping=damping, ridge=0.0)
        got = _iterates(solver, f, jnp.zeros(d), 9)
    zs, rs = [np.zeros(d)], []
    for k in range(8):
        rs.append(numpy_f(zs[-1]) - zs[-1])
        since = k - k % depth  # of the last restart
        z, r = np.stack(zs[since:], axis=1), np.stack(rs[since:], axis=1)
        # With alpha summing to 1, r alpha is the newest residual plus differences to it.
        beta = np.linalg.lstsq(r[:, :-1] - r[:, -1:], -r[:, -1], rcond=None)[0]
        alpha = np.append(beta, 1.0 - beta.sum())
        zs.append((z + damping * r) @ alpha)
    # The normal equations square the condition of the residuals, at most 1e3 here.
    np.testing.assert_allclose(got, np.stack(zs), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("depth", [1, 3])
def test_anderson_steps_are_least_squares_mixing(depth, damping):
    f, numpy_f, d = _tanh()
    with jax.enable_x64(True):
        solver = jdeq.Anderson(depth=depth, damping=damping, ridge=0.0)
        got = _iterates(solver, f, jnp.zeros(d), 8)
    zs, rs = [np.zeros(d)], []
    for _ in range(7):
        rs.append(numpy_f(zs[-1]) - zs[-1])
        dz = np.diff(zs[-depth - 1 :], axis=0).T
        dr = np.diff(rs[-depth - 1 :], axis=0).T
        gamma = np.linalg.lstsq(dr, rs[-1], rcond=None)[0] if len(rs) > 1 else np.zeros(0)
        correction = (dz + damping * dr) @ gamma if len(rs) > 1 else 0.0
        zs.append(zs[-1] + damping * rs[-1] - correction)
    # The normal equations square the condition of dR, at most 1e3 here.
    np.testing.assert_allclose(got, zs, rtol=0, atol=1e-8)


def test_broyden_steps_are_dense_good_broyden():
    f, numpy_f, d = _tanh()
    with jax.enable_x64(True):
        got = _iterates(jdeq.Broyden(), f, jnp.zeros(d), 10)
    z, inverse, want = np.zeros(d), np.eye(d), [np.zeros(d)]
    g = z - numpy_f(z)
    for _ in range(9):
        step = -inverse @ g
        z = z + step
        new = z - numpy_f(z)
        y = new - g
        py = inverse @ y
        inverse += np.outer(step - py, step @ inverse) / (step @ py)
        g = new
        want.append(z)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("transpose", [False, True])
def test_broyden_inverse_factors_are_the_dense_ones(transpose):
    f, numpy_f, d = _tanh()
    with jax.enable_x64(True):
        solver = jdeq.Broyden()
        state = solver.init(f, jnp.zeros(d), ndim=0)
        inverse, points, values = np.eye(d), [np.zeros(d)], [-numpy_f(np.zeros(d))]
        for _ in range(6):
            state = solver.step(f, state, ndim=0)
            points.append(np.asarray(state.z))
            values.append(points[-1] - numpy_f(points[-1]))
        v = np.random.default_rng(0).standard_normal(d)
        got = solver.inverse(state, jnp.asarray(v), ndim=0, transpose=transpose)
    # The newest pair may or may not have entered; all before it have.
    wants = []
    for i in range(6):
        s, y = points[i + 1] - points[i], values[i + 1] - values[i]
        inverse = inverse + np.outer(s - inverse @ y, s @ inverse) / (s @ inverse @ y)
        wants.append((inverse.T if transpose else inverse) @ v)
    assert min(np.abs(got - w).max() for w in wants[-2:]) <= 1e-9


def test_broyden_survives_a_history_shorter_than_the_solve():
    case = TABLE["symmetric"]
    with jax.enable_x64(True):
        solver = jdeq.Broyden(history=3)
        sol = jdeq.fixed_point(
            case.f, *case.inputs("float64"), solver=solver, rtol=1e-9, max_steps=400
        )
        assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
        assert sol.stats.nfe.min() > 4
        assert problems.error(sol.z, problems.truth("symmetric")[0]) <= 1e-7


def test_newton_converges_quadratically_and_solves_an_affine_map_in_one_step():
    f, _, d = _tanh()
    with jax.enable_x64(True):
        solver = jdeq.NewtonKrylov(inner_rtol=1e-10)
        z = _iterates(solver, f, jnp.zeros(d), 10)
        # Newton's order is seen between the moment it enters the basin and rounding.
        errors = np.linalg.norm(z - z[-1], axis=-1)
        pairs = [(a, b) for a, b in zip(errors, errors[1:], strict=False) if 1e-7 < a < 1e-2]
        assert pairs and all(b <= 20 * a**2 for a, b in pairs)
        w = problems.random_matrix(np.random.default_rng(1), 12, 1.5)
        affine = _iterates(solver, lambda z: jnp.asarray(w) @ z + 1.0, jnp.zeros(d), 2)
        want = np.linalg.solve(np.eye(d) - w, np.ones(d))
        np.testing.assert_allclose(affine[1], want, rtol=1e-8)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_nfe_counts_evaluations(solver):
    """One sample: every run of f leaves a mark on the host."""
    calls = []
    f, _, d = _tanh()

    def counted(params, z, x):
        jax.debug.callback(lambda: calls.append(None))
        return f(z)

    sol = jdeq.fixed_point(
        counted, (), jnp.zeros(d), (),
        solver=SOLVERS[solver], rtol=1e-5, max_steps=50, batch_ndim=0,
    )  # fmt: skip
    jax.effects_barrier()
    assert sol.stats.status == jdeq.Status.CONVERGED
    assert len(calls) == int(sol.stats.nfe)


def test_newton_counts_one_affine_solve():
    """First evaluation, linearization, one product per Krylov vector, new iterate."""
    eigenvalues = np.array([0.5, 0.5, -0.5, -0.5, 0.2, 0.2])
    w = jnp.asarray(problems.with_spectrum(np.random.default_rng(0), eigenvalues), jnp.float32)
    sol = jdeq.fixed_point(
        lambda w, z, x: w @ z + x, w, jnp.zeros(6), jnp.arange(1.0, 7.0),
        solver=jdeq.NewtonKrylov(inner_rtol=1e-4), rtol=1e-3, max_steps=10, batch_ndim=0,
    )  # fmt: skip
    # Three distinct eigenvalues: GMRES ends with three products.
    assert int(sol.stats.nfe) == 1 + 1 + 3 + 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: jdeq.Picard(damping=0.0), r"jdeq\.Picard: damping must lie in \(0, 1\]; got 0"),
        (lambda: jdeq.Picard(damping=1.5), r"jdeq\.Picard: damping"),
        (lambda: jdeq.Picard(damping=float("nan")), r"jdeq\.Picard: damping"),
        (lambda: jdeq.Anderson(depth=0), r"jdeq\.Anderson: depth must be >= 1; got 0"),
        (lambda: jdeq.Anderson(damping=-1.0), r"jdeq\.Anderson: damping"),
        (lambda: jdeq.RestartedAnderson(depth=1), r"jdeq\.RestartedAnderson: depth must be >= 2"),
        (lambda: jdeq.RestartedAnderson(damping=2.0), r"jdeq\.RestartedAnderson: damping"),
        (lambda: jdeq.RestartedAnderson(ridge=1.0), r"jdeq\.RestartedAnderson: ridge"),
        (lambda: jdeq.Anderson(ridge=-1e-3), r"jdeq\.Anderson: ridge"),
        (lambda: jdeq.Broyden(history=1), r"jdeq\.Broyden: history must be >= 2; got 1"),
        (lambda: jdeq.NewtonKrylov(inner_steps=0), r"jdeq\.NewtonKrylov: inner_steps"),
        (lambda: jdeq.NewtonKrylov(inner_rtol=1.0), r"jdeq\.NewtonKrylov: inner_rtol"),
        (lambda: jdeq.Implicit(rtol=-1.0), r"jdeq\.Implicit: rtol"),
        (lambda: jdeq.Implicit(max_steps=0), r"jdeq\.Implicit: max_steps"),
        (lambda: jdeq.Phantom(steps=0), r"jdeq\.Phantom: steps"),
        (lambda: jdeq.Phantom(damping=0.0), r"jdeq\.Phantom: damping"),
        (lambda: jdeq.Neumann(terms=0), r"jdeq\.Neumann: terms must be >= 1; got 0"),
        (lambda: jdeq.SharedInverse(refine=-1), r"jdeq\.SharedInverse: refine"),
    ],
)
def test_bad_options_name_themselves(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: jdeq.Picard(0.5),  # type: ignore[misc]
        lambda: jdeq.Anderson(deph=3),  # type: ignore[call-arg]
        lambda: jdeq.Implicit(solver="anderson"),  # type: ignore[arg-type]
    ],
)
def test_options_are_keywords_and_typed(build):
    with pytest.raises(TypeError):
        build()


@pytest.mark.parametrize("one", [*SOLVERS.values(), jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
def test_options_are_hashable_comparable_and_frozen(one):
    assert type(one)() == one and hash(type(one)()) == hash(one)
    with pytest.raises(AttributeError):
        one.extra = 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("depth", [1, 6, 7, 20])
@pytest.mark.parametrize("ndim", [1, 2])
def test_slots_are_mixed_in_the_accumulator_s_dtype(ndim, depth, dtype):
    """Few slots are summed one by one, more of them are a product of matrices."""
    rng = np.random.default_rng(depth)
    batch = (3, 2)[:ndim]
    past = {"a": (*batch, depth, 4, 5), "b": (*batch, depth)}
    past = {k: jnp.asarray(rng.standard_normal(shape), dtype) for k, shape in past.items()}
    weights = jnp.asarray(rng.standard_normal((*batch, depth)), dtype).astype(jnp.float32)
    for name, mixed in tree.history_mix(past, weights, ndim).items():
        slots = np.asarray(past[name], np.float64)
        each = np.asarray(weights, np.float64).reshape(
            *batch, depth, *[1] * (slots.ndim - ndim - 1)
        )
        assert mixed.dtype == jnp.float32
        np.testing.assert_allclose(mixed, np.sum(each * slots, axis=ndim), rtol=1e-5, atol=1e-5)
