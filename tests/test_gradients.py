"""Gradients and tangents of every legal solver x rule x problem against a dense float64 solve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from jax.flatten_util import ravel_pytree
from problems import EXACT_RULES, SOLVERS, TABLE

import jdeq

pytestmark = pytest.mark.compiles

# Asked for: 1e-5 at rtol 1e-7 in float64, 1e-4 at rtol 1e-6 in float32, times Case.slack.
RTOL = {"float64": 1e-7, "float32": 1e-6}
BOUND = {"float64": 1e-5, "float32": 1e-4}

EXACT = [
    (solver, rule, name)
    for solver in SOLVERS
    for rule in EXACT_RULES
    for name, case in TABLE.items()
    if problems.legal(solver, rule) and solver in case.solvers
]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _program(f, solver, gradient, rtol, max_steps, params, z0, x):
    """Gradient of a loss of the solution, from an initial state made of parameters."""

    def run(params, x):
        begin = problems.start(params, z0)
        sol = jdeq.fixed_point(
            f, params, begin, x, solver=solver, gradient=gradient, rtol=rtol, max_steps=max_steps
        )
        return problems.loss(sol.z, begin), sol

    (_, sol), grads = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(params, x)
    return grads, sol


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _tangent(f, solver, gradient, rtol, max_steps, params, z0, x, d_params, d_x):
    def run(params, x):
        return jdeq.fixed_point(
            f, params, z0, x, solver=solver, gradient=gradient, rtol=rtol, max_steps=max_steps
        ).z

    return jax.jvp(run, (params, x), (d_params, d_x))[1]


def _gradients(case, solver, gradient, dtype, rtol, max_steps):
    with jax.enable_x64(dtype == "float64"):
        inputs = case.inputs(dtype)
        grads, sol = _program(case.f, solver, gradient, rtol, max_steps, *inputs)
        return jax.tree.map(np.asarray, grads), jax.tree.map(np.asarray, sol)


def _directions(case):
    """Fixed tangents of (params, x), float64."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape), (case.params, case.x))


@pytest.mark.parametrize("name", TABLE)
def test_table_states_the_gap(name):
    """The gap and the legal solvers in the table are those of the dense Jacobian."""
    case = TABLE[name]
    eigenvalues = np.linalg.eigvals(problems.truth(name)[1])
    gap, radius = np.abs(1 - eigenvalues).min(), np.abs(eigenvalues).max()
    assert case.gap == pytest.approx(gap, rel=0.35)
    assert (radius < 1) == case.contracts == ("picard" in case.solvers)


def _check_against_dense_solve(solver, rule, name, dtype, rtol=None):
    case = TABLE[name]
    rtol, steps = rtol or RTOL[dtype], 2 * case.steps(solver)
    grads, sol = _gradients(case, SOLVERS[solver], EXACT_RULES[rule], dtype, rtol, steps)
    z, _, want = problems.truth(name)
    assert np.all(sol.stats.status == jdeq.Status.CONVERGED), sol.stats
    assert problems.error(sol.z, z) <= BOUND[dtype] * case.slack
    assert problems.error(grads[0], want[0]) <= BOUND[dtype] * case.slack
    assert problems.error(grads[1], want[1]) <= BOUND[dtype] * case.slack


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(("solver", "name"), [(s, n) for s, r, n in EXACT if r == "implicit"])
def test_implicit_against_dense_solve(solver, name, dtype):
    _check_against_dense_solve(solver, "implicit", name, dtype)


# The derivative of the steps taken lags behind the state, by ``k rho^k`` for Picard: at the asked
# rtol of 1e-7 it is 3e-4 off at worst (Broyden, symmetric), at 1e-9 within the bound everywhere.
# A rotation is solved in three steps, by Krylov's finite end, before its derivative is.
UNROLLED = [
    (solver, name)
    for solver, rule, name in EXACT
    if rule == "unrolled" and (solver == "picard" or name != "rotation")
]


@pytest.mark.parametrize(("solver", "name"), UNROLLED)
def test_unrolled_against_dense_solve(solver, name):
    _check_against_dense_solve(solver, "unrolled", name, "float64", rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("slow", "expansive")])
def test_unrolled_picard_in_float32(name):
    """Not "slow": its derivative would need more steps than float32 can tell apart."""
    _check_against_dense_solve("picard", "unrolled", name, "float32")


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("adjoint", SOLVERS)
def test_adjoint_by_another_solver_than_the_forward(adjoint, name):
    case = TABLE[name]
    if adjoint not in case.solvers:
        pytest.skip("Picard cannot solve this adjoint")
    rule = jdeq.Implicit(solver=SOLVERS[adjoint], max_steps=case.steps(adjoint))
    grads, _ = _gradients(case, jdeq.Anderson(), rule, "float64", 1e-7, 150)
    assert problems.error(grads, problems.truth(name)[2]) <= 1e-5 * case.slack


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("solver", SOLVERS)
def test_jvp_against_dense_solve(solver, name):
    case = TABLE[name]
    if solver not in case.solvers:
        pytest.skip("Picard cannot solve this tangent")
    d_params, d_x = _directions(case)
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        got = _tangent(
            case.f, SOLVERS[solver], jdeq.Implicit(), 1e-7, case.steps(solver),
            params, z0, x, d_params, d_x,
        )  # fmt: skip
        want = problems.oracle(name)[2](params, x, d_params, d_x)
        assert problems.error(got, jax.tree.map(np.asarray, want)) <= 1e-5 * case.slack


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_unrolled_jvp_against_dense_solve(solver):
    case = TABLE["symmetric"]
    d_params, d_x = _directions(case)
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        got = _tangent(
            case.f, SOLVERS[solver], jdeq.Unrolled(), 1e-9, 500, params, z0, x, d_params, d_x
        )
        want = problems.oracle("symmetric")[2](params, x, d_params, d_x)
        assert problems.error(got, jax.tree.map(np.asarray, want)) <= 1e-5


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_unrolled_picard_is_backprop_through_the_loop(damping, steps, checkpoint):
    """Unconverged: the gradient of ``steps`` updates written out, for params, x and z0."""
    case = TABLE["pytree"]
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        z0 = jax.tree.map(lambda a: a + 0.3, z0)

        def by_hand(params, z0, x):
            z = z0
            for _ in range(steps):
                fz = case.f(params, z, x)
                z = jax.tree.map(lambda a, b: (1 - damping) * a + damping * b, z, fz)
            return problems.loss(z, z0)

        def by_rule(params, z0, x):
            sol = jdeq.fixed_point(
                case.f, params, z0, x,
                solver=jdeq.Picard(damping=damping),
                gradient=jdeq.Unrolled(checkpoint=checkpoint),
                rtol=0.0, atol=1e-30, max_steps=steps,
            )  # fmt: skip
            return problems.loss(sol.z, z0)

        want = jax.jit(jax.grad(by_hand, argnums=(0, 1, 2)))(params, z0, x)
        got = jax.jit(jax.grad(by_rule, argnums=(0, 1, 2)))(params, z0, x)
        assert problems.error(got, jax.tree.map(np.asarray, want)) <= 1e-12


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_unrolled_acceleration_against_finite_differences(solver):
    """Unconverged after 4 updates: the derivative of the mixing is part of the gradient."""
    case = TABLE["tanh"]
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        d_params, d_x = _directions(case)

        @jax.jit
        def run(t):
            moved = jax.tree.map(lambda a, d: a + t * d, (params, x), (d_params, d_x))
            sol = jdeq.fixed_point(
                case.f, moved[0], z0, moved[1],
                solver=SOLVERS[solver], gradient=jdeq.Unrolled(), rtol=1e-12, max_steps=4,
            )  # fmt: skip
            return problems.loss(sol.z, z0)

        h = 1e-5
        want = (run(h) - run(-h)) / (2 * h)
        got = jax.jit(jax.grad(run))(0.0)
        assert float(got) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("entries", [3, 4, 5])
@pytest.mark.parametrize("solver", [jdeq.Anderson(), jdeq.RestartedAnderson()], ids=repr)
def test_unrolled_acceleration_of_states_of_few_entries(solver, entries):
    """A history as long as the state is singular to rounding: derivatives must not multiply it.

    With five differences, half of these gradients for four entries were wrong by more than 5%, and
    one for five entries by a factor of 9.
    """

    @jax.jit
    @jax.grad
    def gradient(b, w, c):
        sol = jdeq.fixed_point(
            lambda w, z, b: jnp.tanh(z @ w + b), w, jnp.zeros_like(b), b,
            solver=solver, gradient=jdeq.Unrolled(), rtol=1e-5, max_steps=12,
        )  # fmt: skip
        return jnp.vdot(c, sol.z)

    for seed in range(8):
        rng = np.random.default_rng(seed)
        w, c = rng.normal(size=(entries, entries)), rng.normal(size=(64, entries))
        w = np.float32(0.9 * w / np.linalg.norm(w, 2))
        b = np.float32(rng.normal(size=(64, entries)))
        z = np.zeros((64, entries))
        for _ in range(1000):
            z = np.tanh(z @ w + b)
        slope = 1 - z**2
        system = np.eye(entries) - slope[:, None, :] * w
        want = slope * np.linalg.solve(system, c[..., None])[..., 0]
        error = np.linalg.norm(gradient(b, w, c) - want, axis=1) / np.linalg.norm(want, axis=1)
        assert np.max(error) < 0.05


def test_the_state_returned_by_unrolled_is_not_differentiated_through():
    """The evaluation that measures its residual has an infinite derivative here."""

    def last(p):
        start = jnp.full((1, 1), 4.0)
        sol = jdeq.fixed_point(
            lambda p, z, x: jnp.sqrt(z) - p, p, start, start,
            solver=jdeq.Picard(), gradient=jdeq.Unrolled(), max_steps=1,
        )  # fmt: skip
        return sol.z[0, 0]

    assert last(2.0) == 0.0 and jax.grad(last)(2.0) == -1.0


@pytest.mark.parametrize("solver", [jdeq.Picard(), jdeq.Anderson()], ids=str)
def test_unrolled_tangents_do_not_pass_a_constant_start(solver):
    """There the derivative in z is infinite."""

    def solve(p):
        x = jnp.ones((1, 1))
        sol = jdeq.fixed_point(
            lambda p, z, x: 0.3 * p * jnp.sqrt(z) + x, p, jnp.zeros((1, 1)), x,
            solver=solver, gradient=jdeq.Unrolled(), rtol=1e-10, max_steps=40,
        )  # fmt: skip
        return sol.z[0, 0]

    with jax.enable_x64(True):
        _, got = jax.jvp(solve, (2.0,), (1.0,))
    root = 0.3 + (0.3**2 + 1) ** 0.5  # of z = 2 a sqrt(z) + 1, with a = 0.3
    assert got == pytest.approx(0.3 * root / (1 - 0.3 / root), rel=1e-6)


def test_gradient_with_respect_to_z0_is_zero_for_implicit_and_not_for_unrolled():
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")

    def run(z0, gradient):
        sol = jdeq.fixed_point(case.f, params, z0, x, gradient=gradient, max_steps=3)
        return jnp.sum(sol.z)

    gradient = jax.jit(jax.grad(run), static_argnums=1)
    assert not np.any(gradient(z0, jdeq.Implicit()))
    assert np.all(np.any(gradient(z0, jdeq.Unrolled()) != 0, axis=-1))


def _dense_rule(name, rule):
    """What an approximate rule is by its formula: ``M b``, with M in place of ``(I - J)^-1``."""
    jacobian = problems.truth(name)[1]
    eye = np.eye(len(jacobian))
    match rule:
        case jdeq.OneStep():
            return eye
        case jdeq.Neumann(terms=terms):
            return sum(np.linalg.matrix_power(jacobian, i) for i in range(terms))
        case jdeq.Phantom(steps=steps, damping=b):
            step = (1 - b) * eye + b * jacobian
            return b * sum(np.linalg.matrix_power(step, i) for i in range(steps))
    raise AssertionError(rule)


APPROXIMATE = [
    jdeq.OneStep(),
    jdeq.Neumann(terms=1),
    jdeq.Neumann(terms=4),
    jdeq.Phantom(steps=1, damping=1.0),
    jdeq.Phantom(steps=4, damping=0.3),
]


@pytest.mark.parametrize("name", ["tanh", "pytree"])
@pytest.mark.parametrize("rule", APPROXIMATE, ids=repr)
def test_approximate_rules_are_their_formulas(rule, name):
    """Reverse and forward mode are both ``M b`` with the rule's own dense M."""
    case = TABLE[name]
    inverse = _dense_rule(name, rule)
    d_params, d_x = _directions(case)
    z_true = problems.truth(name)[0]
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        state = jax.tree.map(jnp.asarray, z_true)

        def run(params, x):
            return jdeq.fixed_point(
                case.f, params, z0, x, gradient=rule, rtol=1e-11, max_steps=100
            ).z

        def flat(tree):
            return ravel_pytree(tree)[0]

        push = jax.jvp(lambda p, x: case.f(p, state, x), (params, x), (d_params, d_x))[1]
        tangent = jax.jit(lambda at, d: jax.jvp(run, at, d)[1])
        got = flat(tangent((params, x), (d_params, d_x)))
        assert problems.error(got, inverse @ np.asarray(flat(push))) <= 1e-8

        gradient = jax.grad(lambda p, x: problems.loss(run(p, x), z0), argnums=(0, 1))
        grads = jax.jit(gradient)(params, x)
        ct, unravel = ravel_pytree(jax.grad(lambda z: problems.loss(z, z0))(state))
        pull = jax.vjp(lambda p, x: case.f(p, state, x), params, x)[1]
        want = pull(unravel(jnp.asarray(inverse.T @ np.asarray(ct))))
        assert problems.error(grads, jax.tree.map(np.asarray, want)) <= 1e-8


def _cosine(a, b):
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("name", ["tanh", "pytree"])
def test_shared_inverse_refines_to_the_exact_gradient(name):
    case, want = TABLE[name], problems.truth(name)[2]
    errors = []
    for refine in (0, 4, 12):
        rule = jdeq.SharedInverse(refine=refine)
        grads, _ = _gradients(case, jdeq.Broyden(), rule, "float64", 1e-7, 150)
        errors.append(problems.error(grads, want))
        assert _cosine(grads, want) > 0.9
    assert errors[0] > errors[1] > errors[2]
    # 12 corrections at a measured rate of at worst 0.5 each.
    assert errors[2] <= 1e-3


def _dense_broyden(f, z, steps, history):
    """z after ``steps`` moves and the estimate of ``(I - J)^-1`` that made the last of them."""
    inverse = used = np.eye(z.size)
    residual = f(z) - z
    for k in range(steps):
        inverse = np.eye(z.size) if k % history == 0 else inverse
        used, move = inverse, inverse @ residual
        z = z + move
        old, residual = residual, f(z) - z
        change = old - residual
        row = move @ inverse
        inverse = inverse + np.outer(move - inverse @ change, row) / (row @ change)
    return z, used


@pytest.mark.parametrize("history", [12, 40])
def test_shared_inverse_is_the_dense_broyden_inverse(history):
    """Also for samples that were done, and held, before the others (and before a restart)."""
    case = TABLE["symmetric"]
    solver, rule = jdeq.Broyden(history=history), jdeq.SharedInverse()
    grads, sol = _gradients(case, solver, rule, "float64", 1e-5, 150)
    assert len(set(sol.stats.nfe.tolist())) > 1
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")
        begin = problems.start(params, z0)
        state, pull = jax.vjp(lambda p, x: case.f(p, jnp.asarray(sol.z), x), params, x)
        del state
        ct = np.asarray(jax.grad(problems.loss)(jnp.asarray(sol.z), begin))
        w = []
        for i, nfe in enumerate(sol.stats.nfe.tolist()):

            def f(z, i=i):
                return np.asarray(case.f(params, jnp.asarray(z)[None], x[i : i + 1]))[0]

            z, inverse = _dense_broyden(f, np.asarray(begin[i]), nfe - 1, history)
            assert problems.error(sol.z[i], z) <= 1e-9
            w.append(inverse.T @ ct[i])
        through = pull(jnp.asarray(np.stack(w)))
        end = jnp.asarray(sol.z)
        direct = jax.grad(lambda p: problems.loss(end, problems.start(p, z0)))(params)
        want = jax.tree.map(jnp.add, through[0], direct), through[1]
        assert problems.error(grads, jax.tree.map(np.asarray, want)) <= 1e-7


def test_the_probe_shows_the_error_of_shared_inverse():
    """Refinement diverges here (its condition does not hold): nobody is told otherwise."""
    case = TABLE["symmetric"]
    params, z0, x = case.inputs("float32")

    def run(probe, refine):
        sol = jdeq.fixed_point(
            case.f, params, z0, x, solver=jdeq.Broyden(), rtol=1e-5, max_steps=100,
            gradient=jdeq.SharedInverse(refine=refine), probe=probe,
        )  # fmt: skip
        return problems.loss(sol.z, z0)

    for refine in (0, 4):
        report = jax.jit(jax.grad(run), static_argnums=1)(jdeq.backward_probe(4), refine)
        assert np.all(report[:, 0] == refine + 1) and np.all(report[:, 1] > 1e-3)


@pytest.mark.parametrize("name", ["tanh", "expansive"])
def test_gradient_of_a_solve_that_starts_at_the_solution(name):
    """No step is taken, and the gradient is still that of the solution."""
    case = TABLE[name]
    z, _, want = problems.truth(name)
    with jax.enable_x64(True):
        params, _, x = case.inputs("float64")

        def run(params, x):
            sol = jdeq.fixed_point(case.f, params, jnp.asarray(z), x, rtol=1e-7, max_steps=60)
            return problems.loss(sol.z, problems.start(params, case.z0)), sol.stats

        grads, stats = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(params, x)
        assert np.all(stats.nfe == 1)
        assert problems.error(grads, want) <= 1e-5


@pytest.mark.parametrize("factor", [1e-6, 1e-24, 1e-30, 1e12, 1e24])
def test_gradient_is_linear_in_the_loss(factor):
    """Squares of small cotangents underflow in float32 long before the cotangents do."""
    case = TABLE["symmetric"]
    params, z0, x = case.inputs("float32")

    @jax.jit
    def gradient(factor):
        def run(params):
            sol = jdeq.fixed_point(case.f, params, z0, x, rtol=1e-6, max_steps=100)
            return factor * jnp.sum(jnp.cos(jnp.arange(16.0)) * sol.z)

        return jax.grad(run)(params)

    want = jax.tree.map(lambda g: np.asarray(g, np.float64) * factor, gradient(1.0))
    assert problems.error(gradient(factor), want) <= 1e-4


@pytest.mark.parametrize(
    "solver",
    [
        jdeq.Picard(),
        jdeq.Picard(damping=0.3),
        jdeq.Anderson(),
        jdeq.Anderson(damping=0.7),
        jdeq.Broyden(),
        jdeq.NewtonKrylov(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("coupling", [0.0, 1.0, 1e7])
def test_an_adjoint_solve_of_components_in_other_units(solver, coupling):
    """Radius 0.3 whatever the coupling; a product 1e7 times its argument is no divergence."""

    def f(w, z, x):
        return z @ w + x

    w = jnp.asarray([[0.3, 0.0], [coupling, 0.2]])
    x, ct = jnp.ones((1, 2)), jnp.asarray([[0.0, 1.0]])

    def loss(x, probe):
        rule = jdeq.Implicit(solver=solver, rtol=1e-5, max_steps=200)
        sol = jdeq.fixed_point(f, w, x, x, gradient=rule, max_steps=200, probe=probe)
        return jnp.vdot(ct, sol.z)

    gradient, report = jax.grad(loss, argnums=(0, 1))(x, jdeq.backward_probe(1))
    exact = np.linalg.solve(np.eye(2) - np.asarray(w, np.float64), np.asarray(ct[0], np.float64))
    np.testing.assert_allclose(gradient[0], exact, rtol=1e-3, atol=1e-6)
    assert report[0, 1] <= 1e-5
