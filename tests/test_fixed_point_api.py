"""The entry point: errors, captured arrays, tracing and compiling once, check, transformations."""

import dataclasses
import functools
import gc
import importlib
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from problems import SOLVERS, TABLE

import jdeq
from jdeq import Status

CASE = TABLE["tanh"]


def _solve(params, z0, x, **options):
    return jdeq.fixed_point(CASE.f, params, z0, x, **{"rtol": 1e-6, "max_steps": 100, **options})


def _loss(params, z0, x, **options):
    z = _solve(params, z0, x, **options).z
    return jnp.sum(jnp.cos(jnp.arange(z.shape[-1])) * z)


def _reference(**options):
    inputs = CASE.inputs("float32")
    run = functools.partial(_loss, **options)
    return inputs, jax.jit(jax.grad(run, argnums=(0, 2)))(*inputs)


def _close(got, want, rtol=2e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a), np.asarray(b), rtol=rtol, atol=rtol * np.abs(b).max()
        ),
        got,
        want,
    )


# --- errors ---------------------------------------------------------------------------------------

Z, X = jnp.zeros((2, 3)), jnp.ones((2, 3))
ARRAY_OPTION = jdeq.Picard(damping=jnp.float32(0.5))


def _same(params, z, x):
    return z


def _with_rtol(rtol):
    return _bad(rtol=rtol).z


def _with_budget(max_steps):
    return _bad(max_steps=max_steps).z


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "solver must be a solver", lambda: _bad(solver="anderson")),
        (TypeError, "solver must be a solver", lambda: _bad(solver=jdeq.Anderson)),
        (TypeError, "gradient must be a rule", lambda: _bad(gradient="implicit")),
        (TypeError, "gradient must be a rule", lambda: _bad(gradient=jdeq.Anderson())),
        (ValueError, "rtol must be a finite number >= 0; got -1", lambda: _bad(rtol=-1.0)),
        (ValueError, "rtol must be a finite number >= 0; got nan", lambda: _bad(rtol=np.nan)),
        (ValueError, "atol must be a finite number >= 0; got inf", lambda: _bad(atol=np.inf)),
        (ValueError, "max_steps must be >= 1; got 0", lambda: _bad(max_steps=0)),
        (ValueError, "max_steps must be an integer >= 1; got 2.5", lambda: _bad(max_steps=2.5)),
        (ValueError, "max_steps must be an integer >= 1; got True", lambda: _bad(max_steps=True)),
        (ValueError, "batch_ndim must be >= 0; got -1", lambda: _bad(batch_ndim=-1)),
        (ValueError, "rtol must be a finite number >= 0; got 1e-3", lambda: _bad(rtol="1e-3")),
        (ValueError, "rtol must be .* and static under jit", lambda: jax.jit(_with_rtol)(1e-3)),
        (ValueError, "max_steps must be .* and static", lambda: jax.jit(_with_budget)(3)),
        (
            TypeError,
            "options must be plain numbers; got Picard",
            lambda: _bad(solver=ARRAY_OPTION),
        ),
        (
            ValueError,
            "jdeq.Anderson: depth must be an integer >= 1; got 2.5",
            lambda: jdeq.Anderson(depth=2.5),
        ),
        (
            ValueError,
            "jdeq.Implicit: max_steps must be an integer >= 1; got 2.5",
            lambda: jdeq.Implicit(max_steps=2.5),
        ),
        (ValueError, "leaves of z0 must share", lambda: _bad(batch_ndim=3)),
        (ValueError, "z0 must have at least one leaf", lambda: _bad(z0=())),
        (TypeError, "z0 must have floating leaves; got int32", lambda: _bad(z0=jnp.zeros(2, int))),
        (TypeError, "z0 must have floating leaves; got complex", lambda: _bad(z0=Z + 1j)),
        (
            ValueError,
            "leaves of z0 must share",
            lambda: _bad(z0={"a": Z, "b": jnp.zeros((3, 3))}),
        ),
        (
            ValueError,
            r"keep the shapes of z, \(2, 3\); got \(2,\)",
            lambda: _bad(lambda p, z, x: z[:, 0]),
        ),
        (TypeError, "keep the structure of z", lambda: _bad(lambda p, z, x: (z, z))),
        (TypeError, "keep the structure of z", lambda: _bad(lambda p, z, x: None)),
        (
            ValueError,
            "probe reports on a backward solve",
            lambda: _bad(gradient=jdeq.OneStep(), probe=jdeq.backward_probe()),
        ),
        (ValueError, "probe", lambda: _bad(probe=jnp.zeros(3))),
        (ValueError, "probe", lambda: _bad(probe=jdeq.backward_probe(5))),
        (
            ValueError,
            r"jdeq.SharedInverse: the forward solver must be jdeq.Broyden",
            lambda: _bad(gradient=jdeq.SharedInverse()),
        ),
        (
            ValueError,
            r"jdeq.Unrolled.*NewtonKrylov.*jdeq.Implicit",
            lambda: _bad(gradient=jdeq.Unrolled(), solver=jdeq.NewtonKrylov()),
        ),
    ],
)
def test_wrong_static_facts_raise_at_trace_time(error, message, call):
    with pytest.raises(error, match=message):
        jax.eval_shape(call)


def _bad(f=_same, z0=Z, **options):
    return jdeq.fixed_point(f, (), z0, X, **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="tolerance"):
        jdeq.fixed_point(_same, (), Z, X, tolerance=1e-3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        jdeq.fixed_point(_same, (), Z, X, jdeq.Picard())  # type: ignore[misc]


def test_traced_tolerance_is_refused():
    with pytest.raises(ValueError, match="rtol must be a finite number"):
        jax.jit(lambda r: jdeq.fixed_point(_same, (), Z, X, rtol=r).z)(1e-3)


def test_result_of_f_is_cast_to_the_state():
    sol = jdeq.fixed_point(lambda p, z, x: (0.5 * z + x).astype(jnp.float16), (), Z, X, rtol=1e-2)
    assert sol.z.dtype == jnp.float32 and np.all(sol.stats.status == Status.CONVERGED)


# --- captured arrays and initial states -----------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled(), jdeq.OneStep()], ids=repr)
def test_captured_arrays_receive_the_gradients_of_arguments(rule, jit):
    params, z0, x = CASE.inputs("float32")

    def captured(params, x):
        sol = jdeq.fixed_point(
            lambda _, z, __: CASE.f(params, z, x), (), z0, (),
            gradient=rule, rtol=1e-6, max_steps=100,
        )  # fmt: skip
        return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z)

    def passed(params, x):
        return _loss(params, z0, x, gradient=rule)

    got, want = (jax.grad(g, argnums=(0, 1)) for g in (captured, passed))
    _close((jax.jit(got) if jit else got)(params, x), want(params, x))


def test_a_map_may_capture_arrays_and_take_them_at_once():
    params, z0, x = CASE.inputs("float32")

    def both(w):
        sol = jdeq.fixed_point(
            lambda p, z, x: jnp.tanh(0.5 * (z @ p.T + z @ w.T) + x), w, z0, x, rtol=1e-6,
            max_steps=100,
        )  # fmt: skip
        return jnp.sum(sol.z**2)

    def once(w):
        sol = jdeq.fixed_point(
            lambda p, z, x: jnp.tanh(z @ p.T + x), w, z0, x, rtol=1e-6, max_steps=100
        )
        return jnp.sum(sol.z**2)

    _close(jax.grad(both)(params["w"]), jax.grad(once)(params["w"]))


def test_non_array_constants_and_integer_inputs():
    def f(params, z, x):
        return 0.5 * jnp.take(params, x["index"], axis=0) + 0.3 * z * x["flag"]

    params = jnp.arange(6.0).reshape(3, 2)
    x = {"index": jnp.array([0, 2]), "flag": True}

    def run(params):
        return jnp.sum(jdeq.fixed_point(f, params, jnp.zeros((2, 2)), x, rtol=1e-6).z)

    want = np.zeros((3, 2))
    want[[0, 2]] = 0.5 / 0.7
    np.testing.assert_allclose(jax.grad(run)(params), want, rtol=1e-5)


def test_same_function_with_another_constant_is_another_program():
    """The gain is a Python number that f reads when traced; two values differ by one rounding."""
    gain = {"value": 0.5}

    def f(params, z, x):
        return gain["value"] * z + x

    one = jnp.ones((1, 1))
    options = {"solver": jdeq.Picard(), "gradient": jdeq.Unrolled(), "max_steps": 1}
    for value in (0.5, 0.25, 0.25000003, 1e-9, 0.9):
        gain["value"] = value
        sol = jdeq.fixed_point(f, (), one, 0 * one, rtol=0.0, atol=1e-30, **options)
        assert sol.z[0, 0] == np.float32(value)


@pytest.mark.parametrize("jit", [False, True])
def test_one_callable_that_captures_new_arrays_at_each_call(jit):
    """A module whose weights are set before it is called: no trace of an earlier call returns."""

    class Module:
        w = None

        def __call__(self, params, z, x):
            return self.w * z + x

    module, one = Module(), jnp.ones((1, 1))

    def run(w):
        module.w = w
        return jnp.sum(jdeq.fixed_point(module, (), one, one, rtol=1e-6).z)

    gradient = jax.jit(jax.grad(run)) if jit else jax.grad(run)
    for value in (0.5, 0.75):
        assert gradient(value) == pytest.approx(1 / (1 - value) ** 2, rel=1e-4)
        assert run(value) == pytest.approx(1 / (1 - value), rel=1e-4)


def test_same_function_with_another_table_is_another_program():
    """A numpy table read when traced: large arrays print with an ellipsis."""
    table = {"value": np.zeros((1, 5000), np.float32)}

    def f(params, z, x):
        return 0.5 * z + table["value"]

    z0 = jnp.zeros((1, 5000))
    for shift in (0.0, 1.0):
        table["value"] = np.zeros((1, 5000), np.float32)
        table["value"][0, 2500] = shift
        sol = jdeq.fixed_point(f, (), z0, (), rtol=1e-6, max_steps=60)
        assert sol.z[0, 2500] == pytest.approx(2 * shift, rel=1e-5)


def test_captured_arrays_may_change_between_eager_calls():
    box = {"w": jnp.float32(0.5)}

    def f(params, z, x):
        return box["w"] * z + x

    for value in (0.5, 0.75):
        box["w"] = jnp.float32(value)
        sol = jdeq.fixed_point(f, (), jnp.zeros((1, 1)), jnp.ones((1, 1)), rtol=1e-6)
        assert sol.z[0, 0] == pytest.approx(1 / (1 - value), rel=1e-5)


def test_no_tracer_leaks():
    params, z0, x = CASE.inputs("float32")

    def run(params, x):
        sol = jdeq.fixed_point(lambda _, z, x: CASE.f(params, z, x), (), z0, x, rtol=1e-4)
        return jnp.sum(sol.z)

    with jax.checking_leaks():
        jax.jit(jax.grad(run, argnums=(0, 1)))(params, x)


def test_captured_arrays_are_not_kept_alive():
    """The compile cache must not hold the arrays of an earlier call."""

    def solve(w):
        return jdeq.fixed_point(lambda p, z, x: w * z + x, (), X, X, rtol=1e-3).z

    w = jnp.full((2, 3), 0.5)
    solve(w).block_until_ready()
    alive = weakref.ref(w)
    del w
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("jit", [False, True])
def test_initial_state_made_of_parameters(jit):
    params, z0, x = CASE.inputs("float32")

    def run(params, x):
        return _loss(params, jnp.tanh(z0 + params["b"] + x), x)

    gradient = jax.grad(run, argnums=(0, 1))
    _close((jax.jit(gradient) if jit else gradient)(params, x), _reference()[1])


# --- tracing and compiling ------------------------------------------------------------------------


def _counting(calls):
    def f(params, z, x):
        calls.append(jax.tree.map(jnp.shape, z))
        return CASE.f(params, z, x)

    return f


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_trace_per_shape(solver):
    calls, (params, z0, x) = [], CASE.inputs("float32")
    f = _counting(calls)

    @jax.jit
    def solve(params, z0, x):
        return jdeq.fixed_point(f, params, z0, x, solver=SOLVERS[solver]).z

    for _ in range(3):
        solve(params, z0, x)
    assert len(calls) == 1
    solve(params, z0[:2], x[:2])
    assert len(calls) == 2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Phantom()], ids=repr)
def test_one_trace_for_value_and_gradient(solver, rule):
    calls, (params, z0, x) = [], CASE.inputs("float32")
    f = _counting(calls)

    @jax.jit
    def step(params, x):
        def run(params):
            sol = jdeq.fixed_point(f, params, z0, x, solver=SOLVERS[solver], gradient=rule)
            return jnp.sum(sol.z)

        return jax.value_and_grad(run)(params)

    step(params, x)
    step(params, x)
    assert len(calls) == 1


class _Compilations:
    """Counts XLA compilations while active."""

    def __init__(self):
        self.count, self.active = 0, False
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, seconds, **_):
        if self.active and event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __call__(self, run):
        self.count, self.active = 0, True
        try:
            jax.block_until_ready(run())
        finally:
            self.active = False
        return self.count


@pytest.fixture(scope="module")
def compilations():
    return _Compilations()


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled(), jdeq.OneStep()], ids=repr)
def test_second_eager_call_does_not_compile(compilations, rule):
    params, z0, x = CASE.inputs("float32")
    # Another tolerance than anywhere else, so that the first call is new.
    solve = functools.partial(_solve, params, z0, gradient=rule, rtol=1.25e-4)
    assert compilations(lambda: solve(x)) > 0
    assert compilations(lambda: solve(x)) == 0
    assert compilations(lambda: solve(2.0 * x)) <= 1  # the product by two
    assert compilations(lambda: solve(2.0 * x)) == 0


def test_a_function_made_anew_from_the_same_text_does_not_compile(compilations):
    _, z0, x = CASE.inputs("float32")

    def solve(scale):
        return jdeq.fixed_point(lambda p, z, x: jnp.sin(p * z) + scale * x, 0.5, z0, x).z

    assert compilations(lambda: solve(1.5)) > 0
    assert compilations(lambda: solve(1.5)) == 0
    other = solve(2.5)  # another program, of the same code
    np.testing.assert_allclose(other, np.sin(0.5 * other) + 2.5 * x, atol=1e-2)


def test_second_eager_gradient_does_not_compile(compilations):
    params, z0, x = CASE.inputs("float32")
    gradient = jax.grad(functools.partial(_loss, rtol=1.5e-4))
    assert compilations(lambda: gradient(params, z0, x)) > 0
    assert compilations(lambda: gradient(params, z0, x)) == 0


def test_second_eager_call_of_a_capturing_function_does_not_compile(compilations):
    _, z0, x = CASE.inputs("float32")
    box = {"w": jnp.asarray(CASE.params["w"], jnp.float32)}

    def f(params, z, x):
        return jnp.tanh(z @ box["w"].T + x)

    def solve():
        return jdeq.fixed_point(f, (), z0, x, rtol=1.75e-4).z

    assert compilations(solve) > 0
    box["w"] = 1 * box["w"]
    assert compilations(solve) == 0


# --- check and probe ------------------------------------------------------------------------------


def test_check_outside_jit():
    params, z0, x = CASE.inputs("float32")
    good = _solve(params, z0, x)
    assert jdeq.check(good) is good
    with pytest.raises(FloatingPointError, match=r"4 hit max_steps, 0 non-finite, 0 div.*of 4"):
        jdeq.check(_solve(params, z0, x, max_steps=2))
    with pytest.raises(FloatingPointError, match="1 non-finite"):
        jdeq.check(_solve(params, z0.at[1].set(jnp.nan), x))


def test_check_inside_jit():
    params, z0, x = CASE.inputs("float32")

    def run(params, z0, x):
        return jdeq.check(_solve(params, z0, x)).z

    checked = jax.jit(checkify.checkify(run))
    error, z = checked(params, z0, x)
    assert error.get() is None
    _close(z, _solve(params, z0, x).z)
    error, _ = checked(params, z0.at[2].set(jnp.inf), x)
    assert "not every sample converged" in error.get() and "1 non-finite" in error.get()
    error, _ = jax.jit(
        checkify.checkify(lambda x: jdeq.check(_solve(params, z0, x, max_steps=2)).z)
    )(x)
    with pytest.raises(checkify.JaxRuntimeError, match="4 hit max_steps"):
        error.throw()


def test_check_under_grad_inside_checkify():
    params, z0, x = CASE.inputs("float32")

    def run(params):
        return jnp.sum(jdeq.check(_solve(params, z0, x)).z)

    error, grads = jax.jit(checkify.checkify(jax.grad(run)))(params)
    assert error.get() is None
    _close(grads, jax.grad(lambda p: jnp.sum(_solve(p, z0, x).z))(params))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_probe_reports_and_changes_nothing(solver, jit):
    (params, z0, x), want = _reference(solver=SOLVERS[solver])

    def run(params, x, probe):
        return _loss(params, z0, x, solver=SOLVERS[solver], probe=probe)

    gradient = jax.grad(run, argnums=(0, 1, 2))
    *grads, report = (jax.jit(gradient) if jit else gradient)(params, x, jdeq.backward_probe())
    _close(tuple(grads), want, rtol=1e-6)
    assert report.dtype == jnp.float32 and report.shape == (2,)
    assert 3 <= report[0] <= 100 and report[1] <= 1e-6


def test_probe_survives_vmap_and_scan():
    params, z0, x = CASE.inputs("float32")

    def report(x):
        return jax.grad(lambda probe: _loss(params, z0[:1], x[None], probe=probe))(
            jdeq.backward_probe()
        )

    single = jnp.stack([jax.jit(report)(row) for row in x])
    mapped = jax.jit(jax.vmap(report))(x)
    # Residuals near 1e-6 carry the rounding of float32: compared absolutely.
    for got in (mapped, jax.jit(functools.partial(jax.lax.map, report))(x)):
        np.testing.assert_allclose(got, single, rtol=0, atol=5e-7)


def test_two_solves_share_a_probe():
    params, z0, x = CASE.inputs("float32")

    def one(probe):
        return _loss(params, z0, x, probe=probe)

    def two(probe):
        return one(probe) + _loss(params, z0, 2.0 * x, probe=probe)

    one, two = (jax.grad(g)(jdeq.backward_probe()) for g in (one, two))
    assert two[0] > 1.5 * one[0]


def test_probe_of_an_unused_solution_is_zero():
    params, z0, x = CASE.inputs("float32")
    report = jax.grad(lambda probe: 0.0 * jnp.sum(params["b"]) + _solve(
        params, z0, x, probe=probe).stats.residual.sum() * 0.0)(jdeq.backward_probe())  # fmt: skip
    assert not np.any(report)


# --- transformations ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_jit_equals_eager(solver):
    inputs, want = _reference(solver=SOLVERS[solver])
    gradient = functools.partial(_loss, solver=SOLVERS[solver])
    _close(jax.jit(jax.grad(gradient, argnums=(0, 2)))(*inputs), want, rtol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_over_parameters(solver):
    """Two models at once, on the same inputs; gradients per model."""
    params, z0, x = CASE.inputs("float32")
    other = jax.tree.map(lambda a: 0.8 * a, params)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, other)
    gradient = jax.grad(functools.partial(_loss, solver=SOLVERS[solver]))
    got = jax.vmap(gradient, in_axes=(0, None, None))(stacked, z0, x)
    want = [gradient(p, z0, x) for p in (params, other)]
    _close(got, jax.tree.map(lambda a, b: jnp.stack([a, b]), *want))


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.Unrolled()], ids=repr)
def test_scan_with_a_warm_start(rule):
    """A recurrence of solves: the carry is the next initial state."""
    params, z0, x = CASE.inputs("float32")
    xs = jnp.stack([x, 1.1 * x, 0.9 * x])
    options = {"gradient": rule, "max_steps": 60}

    def scanned(params, xs):
        def step(z, x):
            z = _solve(params, z, x, **options).z
            return z, jnp.sum(z**2)

        return jnp.sum(jax.lax.scan(step, z0, xs)[1])

    def looped(params, xs):
        z, total = z0, 0.0
        for x in xs:
            z = _solve(params, z, x, **options).z
            total += jnp.sum(z**2)
        return total

    got, want = (jax.jit(jax.grad(g, argnums=(0, 1)))(params, xs) for g in (scanned, looped))
    _close(got, want)


@pytest.mark.parametrize("solver", SOLVERS)
def test_remat(solver):
    inputs, want = _reference(solver=SOLVERS[solver])
    run = jax.checkpoint(functools.partial(_loss, solver=SOLVERS[solver]))
    _close(jax.jit(jax.grad(run, argnums=(0, 2)))(*inputs), want)


def test_inside_cond_and_while():
    params, z0, x = CASE.inputs("float32")

    def run(params, on):
        return jax.lax.cond(on, lambda: _loss(params, z0, x), lambda: 0.0)

    _close(jax.grad(run)(params, True), _reference()[1][0])
    last = jax.lax.fori_loop(0, 3, lambda i, z: _solve(params, z, x).z, z0)
    _close(last, _solve(params, z0, x).z, rtol=1e-4)


def _wide():
    """Sixteen samples, two for each of eight devices."""
    params, _, _ = CASE.inputs("float32")
    x = jnp.asarray(np.random.default_rng(11).standard_normal((16, 16)), jnp.float32)
    return params, jnp.zeros_like(x), x


@functools.cache
def _wide_reference(solver):
    def run(params, z0, x):
        sol = _solve(params, z0, x, solver=SOLVERS[solver])
        return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol

    (_, sol), grads = jax.jit(
        jax.value_and_grad(run, argnums=(0, 2), has_aux=True)
    )(*_wide())  # fmt: skip
    return sol, grads


def _same_solution(got, want):
    np.testing.assert_array_equal(got.stats.status, want.stats.status)
    assert np.abs(np.asarray(got.stats.nfe) - np.asarray(want.stats.nfe)).max() <= 1
    np.testing.assert_allclose(got.z, want.z, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_pmap(solver):
    params, z0, x = _wide()
    sol, want = _wide_reference(solver)

    def local(params, z0, x):
        def run(params, x):
            sol = _solve(params, z0, x, solver=SOLVERS[solver])
            return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol

        (d_params, d_x), sol = jax.grad(run, argnums=(0, 1), has_aux=True)(params, x)
        return sol, (jax.lax.psum(d_params, "data"), d_x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        mapped = jax.pmap(local, axis_name="data", in_axes=(None, 0, 0))
        got, grads = mapped(params, z0.reshape(8, 2, 16), x.reshape(8, 2, 16))
    flat = jax.tree.map(lambda a: np.asarray(a).reshape(16, *a.shape[2:]), got)
    _same_solution(flat, sol)
    _close(jax.tree.map(lambda a: a[0], grads[0]), want[0])
    _close(grads[1].reshape(16, 16), want[1])


def _mesh(kind, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("inside", [True, False], ids=["grad inside", "grad outside"])
def test_shard_map(solver, inside):
    mesh = _mesh(jax.sharding.AxisType.Auto)
    params, z0, x = _wide()
    sol, want = _wide_reference(solver)
    data, whole = jax.P("data"), jax.P()

    def local_loss(params, z0, x):
        sol = _solve(params, z0, x, solver=SOLVERS[solver])
        return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol

    if inside:

        def local(params, z0, x):
            (d_params, d_x), sol = jax.grad(local_loss, argnums=(0, 2), has_aux=True)(params, z0, x)
            return sol, d_params, d_x

        got, *grads = jax.jit(
            jax.shard_map(
                local, mesh=mesh, in_specs=(whole, data, data), out_specs=(data, whole, data)
            )
        )(params, z0, x)
    else:

        def summed(params, z0, x):
            value, sol = local_loss(params, z0, x)
            return jax.lax.psum(value, "data"), sol

        mapped = jax.shard_map(
            summed, mesh=mesh, in_specs=(whole, data, data), out_specs=(whole, data)
        )
        grads, got = jax.jit(jax.grad(mapped, argnums=(0, 2), has_aux=True))(params, z0, x)
    _same_solution(got, sol)
    _close(tuple(grads), want)


def test_shard_map_unrolled_and_probe():
    mesh = _mesh(jax.sharding.AxisType.Auto)
    params, z0, x = _wide()
    data, whole = jax.P("data"), jax.P()

    def unrolled(params, z0, x):
        sol = _solve(params, z0, x, gradient=jdeq.Unrolled(), max_steps=30)
        return jax.lax.psum(jnp.sum(sol.z**2), "data")

    got = jax.jit(jax.grad(jax.shard_map(
        unrolled, mesh=mesh, in_specs=(whole, data, data), out_specs=whole
    )))(params, z0, x)  # fmt: skip
    want = jax.grad(
        lambda p: jnp.sum(_solve(p, z0, x, gradient=jdeq.Unrolled(), max_steps=30).z ** 2)
    )(params)
    _close(got, want, rtol=1e-3)

    def probed(params, z0, x):
        rows = jax.grad(lambda probe: _loss(params, z0, x, probe=probe))(
            jax.lax.pcast(jdeq.backward_probe(2), "data", to="varying")
        )
        return rows

    rows = jax.jit(jax.shard_map(
        probed, mesh=mesh, in_specs=(whole, data, data), out_specs=data
    ))(params, z0, x)  # fmt: skip
    assert rows.shape == (16, 2) and np.all(rows[:, 0] >= 3) and np.all(rows[:, 1] <= 1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_meshes_with_a_sharded_batch(solver, kind):
    mesh = _mesh(getattr(jax.sharding.AxisType, kind))
    sol, want = _wide_reference(solver)
    with jax.set_mesh(mesh):
        params, z0, x = _wide()
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        z0, x = jax.device_put((z0, x), jax.NamedSharding(mesh, jax.P("data")))

        @jax.jit
        def step(params, z0, x):
            def run(params, x):
                sol = _solve(params, z0, x, solver=SOLVERS[solver])
                return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol

            return jax.grad(run, argnums=(0, 1), has_aux=True)(params, x)

        grads, got = step(params, z0, x)
        assert got.z.sharding.is_equivalent_to(x.sharding, 2)
    _same_solution(got, sol)
    _close(grads, want)


@pytest.mark.parametrize("rule", [jdeq.Unrolled(), jdeq.OneStep(), jdeq.Phantom(), jdeq.Neumann()])
def test_explicit_mesh_with_other_rules(rule):
    mesh = _mesh(jax.sharding.AxisType.Explicit)
    params, z0, x = _wide()
    want = jax.grad(lambda p: _loss(p, z0, x, gradient=rule, max_steps=30))(params)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        z0, x = jax.device_put((z0, x), jax.NamedSharding(mesh, jax.P("data")))
        got = jax.jit(jax.grad(lambda p: _loss(p, z0, x, gradient=rule, max_steps=30)))(params)
    _close(got, want, rtol=1e-3)


def test_penalty_and_spectrum_on_an_explicit_mesh():
    mesh = _mesh(jax.sharding.AxisType.Explicit)
    params, z0, x = _wide()
    key = jax.random.key(0)

    def penalty(params, x):
        z = jnp.tanh(x)
        return jnp.sum(jdeq.jacobian_penalty(CASE.f, params, z, x, key))

    def radius(x):
        return jdeq.spectral_radius(CASE.f, params, jnp.tanh(x), x, key)

    want = jax.grad(penalty)(params, x), radius(x)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        got = jax.jit(jax.grad(penalty))(params, split), jax.jit(radius)(split)
    _close(got, want)


def test_a_start_that_lies_elsewhere_than_its_image_is_refused():
    mesh = _mesh(jax.sharding.AxisType.Explicit)
    params, z0, x = _wide()
    with jax.set_mesh(mesh):
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        with pytest.raises(ValueError, match=r"z0 must lie on the mesh as f\(z0\) does, .*data"):
            _solve(params, jnp.zeros(x.shape), x)


def test_shared_inverse_inside_shard_map():
    """In float64: rounding of the secants is part of the rule's answer."""
    mesh = _mesh(jax.sharding.AxisType.Auto)
    rule = jdeq.SharedInverse()

    def gradient(params, z0, x):
        return jax.grad(
            lambda x: _loss(params, z0, x, solver=jdeq.Broyden(), gradient=rule, rtol=1e-5)
        )(x)

    with jax.enable_x64(True):
        params, z0, x = jax.tree.map(lambda a: a.astype("float64"), _wide())
        whole, data = jax.P(), jax.P("data")
        got = jax.jit(jax.shard_map(
            gradient, mesh=mesh, in_specs=(whole, data, data), out_specs=data
        ))(params, z0, x)  # fmt: skip
        want = gradient(params, z0, x)
    _close(got, want, rtol=1e-8)


def test_a_probe_that_devices_share_is_refused():
    mesh = _mesh(jax.sharding.AxisType.Auto)
    params, z0, x = _wide()

    def report(probe, x):
        return jax.grad(lambda probe: _loss(params, jnp.zeros_like(x), x, probe=probe))(probe)

    with pytest.raises(ValueError, match=r"probe must vary over \['data'\] inside shard_map"):
        jax.shard_map(report, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())(
            jdeq.backward_probe(), x
        )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_meshes_with_a_sharded_width(solver, kind):
    """Tensor parallel: the state and the rows of W are split over model, the batch over data."""
    mesh = _mesh(getattr(jax.sharding.AxisType, kind), (2, 4), ("data", "model"))
    full, z0, x = _wide()
    full = {"w": full["w"], "b": full["b"]}

    def f(params, z, x):
        whole = jax.sharding.reshard(z, jax.P("data", None)) if kind == "Explicit" else z
        return jnp.tanh(whole @ params["w"].T + params["b"] + x)

    def run(params, x, z0):
        sol = jdeq.fixed_point(f, params, z0, x, solver=SOLVERS[solver], rtol=1e-6, max_steps=100)
        return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol.stats.nfe

    def plain(params, x, z0):
        sol = jdeq.fixed_point(
            lambda p, z, x: jnp.tanh(z @ p["w"].T + p["b"] + x), params, z0, x,
            solver=SOLVERS[solver], rtol=1e-6, max_steps=100,
        )  # fmt: skip
        return jnp.sum(jnp.cos(jnp.arange(16)) * sol.z), sol.stats.nfe

    want, nfe = jax.jit(jax.grad(plain, argnums=(0, 1), has_aux=True))(full, x, z0)
    with jax.set_mesh(mesh):
        specs = {"w": jax.P("model", None), "b": jax.P("model")}
        params = {k: jax.device_put(v, jax.NamedSharding(mesh, specs[k])) for k, v in full.items()}
        z0, x = jax.device_put((z0, x), jax.NamedSharding(mesh, jax.P("data", "model")))
        got, count = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(params, x, z0)
    assert np.abs(np.asarray(count) - np.asarray(nfe)).max() <= 1
    _close(got, want)


# --- programs that only look the same -------------------------------------------------------------


def _masked(mask):
    inner = jax.jit(lambda z: z * mask)
    return lambda p, z, x: jnp.tanh(p * inner(z) + x)


def _host(c):
    def call(z):
        out = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return jax.pure_callback(lambda a: np.asarray(c * a, a.dtype), out, z)

    return lambda p, z, x: jnp.tanh(p * jax.lax.stop_gradient(call(z)) + x)


def _ruled(scale):
    @jax.custom_jvp
    def through(z):
        return 1.0 * z

    @through.defjvp
    def _(primals, tangents):
        return through(*primals), scale * tangents[0]

    return lambda p, z, x: jnp.tanh(p * through(z) + x)


class _Owner:
    """One object, hashed alike, whose map changes between calls."""

    def __call__(self, p, z, x):
        return self.f(p, z, x)

    def __hash__(self):
        return 7


@pytest.mark.parametrize(
    ("make", "differentiable"),
    [
        (lambda c: _masked(np.array([c, c], np.float32)), True),
        (lambda c: _masked(jnp.array([c, c], jnp.float32)), True),
        (_ruled, True),
        (_host, False),
    ],
    ids=["numpy in a jit", "array in a jit", "custom rule", "callback"],
)
def test_programs_with_the_same_text_are_told_apart(make, differentiable):
    """Constants of nested jits, rules and callbacks do not stand in a program's text."""
    owner, x = _Owner(), jnp.ones((1, 2))

    def run(p):
        return jnp.sum(jdeq.fixed_point(owner, p, jnp.zeros_like(x), x, rtol=1e-6).z)

    seen = []
    for c in (0.0, 0.5, 1.0, 0.0):
        owner.f = make(c)
        seen.append(float(run(0.5)) + (float(jax.grad(run)(0.5)) if differentiable else 0.0))
    assert seen[0] == seen[3] and len(set(seen)) == 3


def test_second_eager_call_with_custom_rules_inside_does_not_compile(compilations):
    x = jnp.ones((2, 3))

    def f(p, z, x):
        return 0.3 * jax.nn.relu(z) + 0.2 * jax.nn.gelu(p * z) + x

    gradient = jax.grad(lambda p: jnp.sum(jdeq.fixed_point(f, p, jnp.zeros_like(x), x).z))
    assert compilations(lambda: gradient(0.5)) > 0
    assert compilations(lambda: gradient(0.5)) == 0


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.OneStep(), jdeq.Neumann(), jdeq.Unrolled()])
@pytest.mark.parametrize("where", ["z", "params"])
def test_a_custom_vjp_inside_the_map(where, rule):
    """On what does not move in one half of the linearization."""

    @jax.custom_vjp
    def same(a):
        return 1.0 * a

    same.defvjp(lambda a: (1.0 * a, None), lambda _, ct: (ct,))

    def with_rule(p, z, x):
        return jnp.tanh(same(p) * z + x) if where == "params" else jnp.tanh(p * same(z) + x)

    def run(p, f):
        x = jnp.ones((2, 3))
        return jnp.sum(jdeq.fixed_point(f, p, jnp.zeros_like(x), x, gradient=rule, rtol=1e-6).z)

    got = jax.jit(jax.grad(run), static_argnums=1)(0.5, with_rule)
    want = jax.jit(jax.grad(run), static_argnums=1)(0.5, lambda p, z, x: jnp.tanh(p * z + x))
    assert float(got) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize(
    ("solver", "rule"),
    [
        (jdeq.Anderson(), jdeq.Implicit()),
        (jdeq.Picard(), jdeq.Unrolled()),
        (jdeq.Reversible(beta=0.5), jdeq.ReversibleGradient()),
    ],
    ids=["implicit", "unrolled", "reversible"],
)
def test_an_empty_batch(solver, rule):
    def run(p):
        x = jnp.ones((0, 3))
        return jnp.sum(
            jdeq.fixed_point(
                lambda p, z, x: p * z + x, p, x, x, solver=solver, gradient=rule, max_steps=3
            ).z
        )

    assert jax.grad(run)(0.5) == 0.0


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Frozen, so it has a hash, which fails: arrays have none."""

    gain: jax.Array

    def __call__(self, w, z, x):
        return jnp.tanh(self.gain * (z @ w) + x)


def test_a_map_whose_hash_fails_is_solved_and_compiles_once():
    run = importlib.import_module("jdeq.fixed_point")._run
    w, x = 0.1 * jnp.eye(5), jnp.ones((3, 5))
    sizes = []
    for gain in (0.5, 0.7):  # what it holds is captured: no other program
        sol = jdeq.fixed_point(Scaled(jnp.full(5, gain)), w, jnp.zeros_like(x), x, rtol=1e-6)
        np.testing.assert_allclose(sol.z, jnp.tanh(0.1 * gain * sol.z + 1.0), rtol=1e-5)
        sizes.append(run._cache_size())
    assert sizes[0] == sizes[1]
