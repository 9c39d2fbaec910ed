"""Second and third derivatives against finite differences of the dense gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import SOLVERS, TABLE

import jdeq

# Five-point differences with h = 2e-4 of a gradient good to 1e-13: about 1e-8 from both sides.
STEP, BOUND = 2e-4, 1e-6


def _point(case):
    params, _, x = case.inputs("float64")
    return params, x


def _direction(case):
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape), (case.params, case.x))


def _at(case, t):
    return jax.tree.map(lambda a, d: a + t * d, _point(case), _direction(case))


@functools.cache
def _differences(name):
    """First and second directional derivative of the dense gradient, numpy float64."""
    case = TABLE[name]
    gradient = problems.oracle(name)[1]
    with jax.enable_x64(True):
        four = [gradient(*_at(case, k * STEP)) for k in (-2, -1, 1, 2)]
        first = jax.tree.map(
            lambda a, b, c, d: np.asarray(a - 8 * b + 8 * c - d) / (12 * STEP), *four
        )
        h = 1e-3
        far = gradient(*_at(case, h)), gradient(*_at(case, 0.0)), gradient(*_at(case, -h))
        second = jax.tree.map(lambda a, b, c: np.asarray(a - 2 * b + c) / h**2, *far)
    return first, second


def _run(name, solver, gradient, rtol=1e-10, max_steps=None):
    case = TABLE[name]
    _, z0, _ = case.inputs("float64")

    def run(at):
        params, x = at
        begin = problems.start(params, z0)
        sol = jdeq.fixed_point(
            case.f, params, begin, x, solver=SOLVERS[solver], gradient=gradient, rtol=rtol,
            max_steps=max_steps or case.steps(solver),
        )  # fmt: skip
        return problems.loss(sol.z, begin)

    return run


def _inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


MODES = {
    "grad of grad": lambda run, at, d: jax.grad(lambda a: _inner(jax.grad(run)(a), d))(at),
    "jvp of grad": lambda run, at, d: jax.jvp(jax.grad(run), (at,), (d,))[1],
    "grad of jvp": lambda run, at, d: jax.grad(lambda a: jax.jvp(run, (a,), (d,))[1])(at),
}


def _compare(name, solver, gradient, mode, **options):
    case = TABLE[name]
    with jax.enable_x64(True):
        run = _run(name, solver, gradient, **options)
        got = jax.jit(functools.partial(MODES[mode], run))(_point(case), _direction(case))
        assert problems.error(got, _differences(name)[0]) <= BOUND


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_second_derivatives(solver, mode):
    _compare("tanh", solver, jdeq.Implicit(), mode)


@pytest.mark.parametrize("mode", ["grad of grad", "jvp of grad"])
@pytest.mark.parametrize(
    ("name", "solver"), [("pytree", "anderson"), ("symmetric", "anderson"), ("expansive", "newton")]
)
def test_second_derivatives_on_other_problems(name, solver, mode):
    _compare(name, solver, jdeq.Implicit(), mode)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_of_unrolled_picard(mode):
    _compare("tanh", "picard", jdeq.Unrolled(), mode, rtol=1e-15, max_steps=80)


def test_jvp_of_jvp():
    case = TABLE["tanh"]
    with jax.enable_x64(True):
        run, d = _run("tanh", "anderson", jdeq.Implicit()), _direction(case)
        once = lambda a: jax.jvp(run, (a,), (d,))[1]  # noqa: E731
        got = jax.jit(lambda at: jax.jvp(once, (at,), (d,))[1])(_point(case))
        want = _inner(_differences("tanh")[0], d)
        assert float(got) == pytest.approx(float(want), rel=BOUND)


def test_third_derivative():
    case = TABLE["tanh"]
    with jax.enable_x64(True):
        run, d = _run("tanh", "anderson", jdeq.Implicit()), _direction(case)
        hvp = lambda a: jax.jvp(jax.grad(run), (a,), (d,))[1]  # noqa: E731
        got = jax.jit(lambda at: jax.jvp(hvp, (at,), (d,))[1])(_point(case))
        # Second difference with h = 1e-3 along a direction of length 20: truncation is 1e-4.
        assert problems.error(got, _differences("tanh")[1]) <= 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_beside_a_probe(mode):
    """A probe in the program changes no derivative."""
    case = TABLE["tanh"]
    with jax.enable_x64(True):
        _, z0, _ = case.inputs("float64")

        def run(at):
            params, x = at

            def inner(params, probe):
                begin = problems.start(params, z0)
                sol = jdeq.fixed_point(
                    case.f, params, begin, x, rtol=1e-10, max_steps=100, probe=probe
                )
                return problems.loss(sol.z, begin)

            return inner(params, jdeq.backward_probe())

        got = jax.jit(functools.partial(MODES[mode], run))(_point(case), _direction(case))
        assert problems.error(got, _differences("tanh")[0]) <= BOUND


def test_second_derivative_through_a_gradient_that_reads_the_probe():
    """value, gradient and probe are taken together, then differentiated, as meta-learning does."""
    case = TABLE["tanh"]
    with jax.enable_x64(True):
        _, z0, _ = case.inputs("float64")

        def first(at):
            def inner(at, probe):
                begin = problems.start(at[0], z0)
                sol = jdeq.fixed_point(
                    case.f, at[0], begin, at[1], rtol=1e-10, max_steps=100, probe=probe
                )
                return problems.loss(sol.z, begin)

            grads, report = jax.grad(inner, argnums=(0, 1))(at, jdeq.backward_probe())
            return _inner(grads, _direction(case)), report

        got, report = jax.jit(jax.grad(first, has_aux=True))(_point(case))
        assert problems.error(got, _differences("tanh")[0]) <= BOUND
        assert report[0] >= 3 and report[1] <= 1e-10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rule", [jdeq.OneStep(), jdeq.Neumann(), jdeq.Phantom(), jdeq.SharedInverse()], ids=repr
)
def test_approximate_rules_refuse_second_derivatives(rule, mode):
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")
    d = jax.tree.map(jnp.ones_like, (params, x))

    def run(at):
        sol = jdeq.fixed_point(case.f, at[0], z0, at[1], solver=jdeq.Broyden(), gradient=rule)
        return problems.loss(sol.z, z0)

    with pytest.raises(NotImplementedError, match=rf"jdeq\.{type(rule).__name__}.*jdeq\.Implicit"):
        jax.eval_shape(functools.partial(MODES[mode], run), (params, x), d)


@pytest.mark.parametrize("solver", [jdeq.Anderson(), jdeq.RestartedAnderson()], ids=str)
def test_derivatives_of_small_states_through_the_steps_are_those_of_large_ones(solver):
    """Squares of residuals leave the range of floats long before the residuals do."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((6, 6)) / 6, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 6)), jnp.float32)

    def loss(x, scale):
        sol = jdeq.fixed_point(
            lambda w, z, x: z @ w + x, w, jnp.zeros_like(x), x,
            solver=solver, gradient=jdeq.Unrolled(), rtol=1e-4, max_steps=10,
        )  # fmt: skip
        return jnp.sum(jnp.sin(sol.z / scale))

    @jax.jit
    def derivatives(x, scale):
        gradient = jax.grad(lambda x: loss(x, scale))
        return [scale * d for d in jax.jvp(gradient, (x,), (x,))]

    want = derivatives(x, 1.0)
    for power in (-20, -30, -40):
        got = derivatives(x * 2.0**power, 2.0**power)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
