"""The reversible pair iteration, and its gradient by stepping back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import TABLE

import jdeq
from experiments.bench.harness import count
from experiments.bench.problems import transformer_cell
from jdeq import Reversible, ReversibleGradient, Status, Unrolled

NO_ANCHORS = ReversibleGradient(rtol=1e30)


def _gradients(case, beta, rule, dtype, steps, rtol=0.0, **options):
    """Gradient for (params, z0, x) and the solution; rtol 0: exactly ``steps`` steps."""
    with jax.enable_x64(dtype == "float64"):
        params, z0, x = case.inputs(dtype)
        z0 = jax.tree.map(lambda a: a + 0.1, z0)

        @jax.jit
        def run(params, z0, x):
            def loss(params, z0, x):
                sol = jdeq.fixed_point(
                    case.f, params, z0, x, solver=Reversible(beta=beta), gradient=rule,
                    rtol=rtol, atol=0.0 if rtol else 1e-30, max_steps=steps, **options,
                )  # fmt: skip
                return problems.loss(sol.z, z0), sol

            return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, z0, x)

        return jax.tree.map(np.asarray, run(params, z0, x))


@pytest.mark.usefixtures("optimized")  # the program that users run
@pytest.mark.parametrize("name", ["tanh", "expansive", "pytree"])
@pytest.mark.parametrize(("beta", "steps"), [(0.5, 3), (0.5, 40), (0.8, 17), (1.4, 9), (0.95, 12)])
def test_float32_gradient_is_that_of_the_steps(name, beta, steps):
    """Against float64 backpropagation through the same steps, converged or not."""
    case = TABLE[name]
    want, sol = _gradients(case, beta, Unrolled(), "float64", steps)
    got, ours = _gradients(case, beta, ReversibleGradient(), "float32", steps)
    plain, _ = _gradients(case, beta, Unrolled(), "float32", steps)
    assert problems.error(ours.z, sol.z) <= 1e-5
    error, rounding = (
        max(problems.error(g, w) for g, w in zip(grads, want, strict=True))
        for grads in (got, plain)
    )
    assert error <= max(2e-5, 3 * rounding)


@pytest.mark.parametrize("beta", [0.5, 0.8])
def test_float64_without_anchors_is_the_algebra(beta):
    """Few steps in float64: stepping back is exact but for rounding, 25^7 1e-16 at worst."""
    case = TABLE["pytree"]
    want, _ = _gradients(case, beta, Unrolled(), "float64", 7)
    got, _ = _gradients(case, beta, NO_ANCHORS, "float64", 7)
    assert problems.error(got, want) <= 1e-7


@pytest.mark.parametrize("name", ["tanh", "symmetric", "pytree"])
def test_each_sample_goes_back_over_the_steps_it_took(name):
    case = TABLE[name]
    want, sol = _gradients(case, 0.8, Unrolled(), "float64", 100, rtol=1e-4)
    got, ours = _gradients(case, 0.8, ReversibleGradient(), "float64", 100, rtol=1e-4)
    assert len(set(sol.stats.nfe.tolist())) > 1
    assert np.all(ours.stats.status == Status.CONVERGED)
    np.testing.assert_array_equal(ours.stats.nfe, sol.stats.nfe)
    assert problems.error(ours.z, sol.z) <= 1e-12
    assert problems.error(got, want) <= 1e-7


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_evaluations_and_products_counted_at_run_time(steps):
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")

    def make(f):
        def loss(params, z0, x):
            sol = jdeq.fixed_point(
                f, params, z0, x, solver=Reversible(beta=0.5), gradient=ReversibleGradient(),
                rtol=0.0, atol=1e-30, max_steps=steps,
            )  # fmt: skip
            return jnp.sum(sol.z**2), sol.stats.nfe

        return jax.value_and_grad(loss, has_aux=True)

    counts = count(make, case.f, (params, z0, x))
    (_, nfe), _ = jax.jit(make(case.f))(params, z0, x)
    # One more forward tells the residual of what is returned.
    assert np.all(nfe == 2 * steps + 1)
    assert counts["evaluations"] == (2 * steps + 1) + 2 * steps
    assert counts["products"] == 2 * steps


def test_a_sample_alone_and_next_to_a_nan():
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")
    x = x.at[1].set(jnp.nan)

    @jax.jit
    def run(params, z0, x):
        def loss(x):
            sol = jdeq.fixed_point(
                case.f, params, z0, x, solver=Reversible(beta=0.8), rtol=1e-4,
                gradient=ReversibleGradient(),
            )  # fmt: skip
            return jnp.sum(jnp.where(sol.stats.status == 0, jnp.sum(sol.z**2, -1), 0.0)), sol

        return jax.grad(loss, has_aux=True)(x)

    grads, sol = run(params, z0, x)
    assert sol.stats.status.tolist() == [0, int(Status.NONFINITE), 0, 0]
    assert np.all(np.isfinite(sol.z))
    for i in (0, 2, 3):
        alone, single = run(params, z0[i : i + 1], x[i : i + 1])
        assert single.stats.nfe[0] == sol.stats.nfe[i]
        np.testing.assert_allclose(single.z[0], sol.z[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[0], grads[i], rtol=1e-4, atol=1e-5)


def test_map_that_turns_nan_keeps_the_steps_before():
    """f is finite until z passes a threshold: the gradient is that of the finite steps."""

    def f(w, z, x):
        return jnp.where(z > 2.5, jnp.nan, w * z + x)

    def loss(w, rule):
        x = jnp.ones((2, 1)).at[1].set(0.1)
        sol = jdeq.fixed_point(
            f, w, jnp.zeros_like(x), x, solver=Reversible(beta=0.5), gradient=rule, max_steps=30,
            rtol=1e-3,
        )  # fmt: skip
        return jnp.sum(sol.z), sol

    grad, sol = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(0.9, ReversibleGradient())
    assert sol.stats.status[0] == Status.NONFINITE
    steps = (int(sol.stats.nfe[0]) - 1) // 2 - 1

    def by_hand(w):
        y = z = 0.0
        for _ in range(steps):
            y = 0.5 * y + 0.5 * (w * z + 1.0)
            z = 0.5 * z + 0.5 * (w * y + 1.0)
        return z

    assert float(sol.z[0, 0]) == pytest.approx(by_hand(0.9), rel=1e-5)
    assert np.isfinite(grad)


@pytest.mark.parametrize("steps", [5, 40])
def test_causal_solves(steps):
    """Positions stop one by one; later ones read those that are done."""
    key = jax.random.key(0)
    w = 0.1 * jax.random.normal(key, (6, 6))
    x = jax.random.normal(jax.random.key(1), (2, 7, 6)) * jnp.linspace(0.1, 1.0, 7)[:, None]

    def f(w, z, x):
        mean = jnp.cumsum(z, axis=1) / jnp.arange(1, 8)[:, None]
        return jnp.tanh(mean @ w + jnp.linspace(0.1, 0.6, 7)[:, None] * z + x)

    def loss(w, x, rule):
        sol = jdeq.fixed_point(
            f, w, jnp.zeros_like(x), x, solver=Reversible(beta=0.8), gradient=rule,
            rtol=1e-4, max_steps=steps, causal=True,
        )  # fmt: skip
        return jnp.sum(jnp.cos(jnp.arange(sol.z.size)).reshape(sol.z.shape) * sol.z), sol.stats

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    got, stats = gradient(w, x, ReversibleGradient())
    want, other = gradient(w, x, Unrolled())
    np.testing.assert_array_equal(stats.nfe, other.nfe)
    if steps == 40:
        assert np.all(stats.status == Status.CONVERGED) and len(set(stats.nfe[0].tolist())) > 1
    assert problems.error(got, jax.tree.map(np.asarray, want)) <= 2e-5


def test_the_probe_reports_the_reconstruction_error():
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")

    def loss(probe, rule):
        sol = jdeq.fixed_point(
            case.f, params, z0, x, solver=Reversible(beta=0.8), gradient=rule, rtol=0.0,
            atol=1e-30, max_steps=24, probe=probe,
        )  # fmt: skip
        return jnp.sum(sol.z**2)

    report = jax.jit(jax.grad(loss), static_argnums=1)
    kept, lost = (
        report(jdeq.backward_probe(4), rule) for rule in (ReversibleGradient(), NO_ANCHORS)
    )
    assert np.all(kept[:, 0] == 48) and np.all(lost[:, 0] == 48)
    assert np.all(kept[:, 1] <= 1e-4) and np.all(kept[:, 1] > 0)
    assert np.all(lost[:, 1] > 1e-2)


@pytest.mark.parametrize("jit", [True, False])
def test_captured_arrays_and_integer_inputs(jit):
    table = jnp.array([[0.1, 0.3], [0.5, -0.2], [0.7, 0.4]])

    def run(w, table, rule):
        def f(params, z, x):
            return jnp.tanh(params["w"] * z + table[x])

        x = jnp.array([0, 2, 1, 2])
        sol = jdeq.fixed_point(
            f, {"w": w, "n": jnp.int32(3)}, jnp.zeros((4, 2)), x, solver=Reversible(beta=0.5),
            gradient=rule, max_steps=12, rtol=1e-5,
        )  # fmt: skip
        return jnp.sum(sol.z**2)

    gradient = jax.grad(run, argnums=(0, 1))
    gradient = jax.jit(gradient, static_argnums=2) if jit else gradient
    got, want = gradient(0.5, table, ReversibleGradient()), gradient(0.5, table, Unrolled())
    assert problems.error(got, jax.tree.map(np.asarray, want)) <= 1e-5


def test_vmap_and_shard_map():
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")

    def loss(params, z0, x):
        sol = jdeq.fixed_point(
            case.f, params, z0, x, solver=Reversible(beta=0.5), gradient=ReversibleGradient(),
            rtol=1e-4, max_steps=30,
        )  # fmt: skip
        return jnp.sum(sol.z**2)

    want = jax.jit(jax.grad(loss, argnums=(0, 2)))(params, z0, x)
    many = jax.tree.map(lambda a: jnp.stack([a, a]), params)
    got = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 2)), (0, None, None)))(many, z0, x)
    for i in range(2):
        each = jax.tree.map(lambda a, i=i: a[i], got)
        assert problems.error(each, jax.tree.map(np.asarray, want)) <= 1e-5

    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("data",), axis_types=auto, devices=jax.devices()[:4])
    data, whole = jax.P("data"), jax.P()

    def local(params, z0, x):
        return jax.lax.psum(loss(params, z0, x), "data")

    split = jax.shard_map(local, mesh=mesh, in_specs=(whole, data, data), out_specs=whole)
    got = jax.jit(jax.grad(split, argnums=(0, 2)))(params, z0, x)
    assert problems.error(got, jax.tree.map(np.asarray, want)) <= 1e-5


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_low_precision(state):
    """f in bfloat16, states in float32 or bfloat16, against float32 backpropagation."""
    case = TABLE["tanh"]
    params, z0, x = case.inputs("float32")

    def half(params, z, x):
        params, z, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, z, x))
        return case.f(params, z, x)

    def loss(params, f, dtype, rule):
        sol = jdeq.fixed_point(
            f, params, z0.astype(dtype), x, solver=Reversible(beta=0.5), gradient=rule,
            rtol=0.0, atol=1e-30, max_steps=16,
        )  # fmt: skip
        assert sol.z.dtype == dtype
        return jnp.sum(sol.z.astype(jnp.float32) ** 2)

    got = jax.jit(jax.grad(loss), static_argnums=(1, 2, 3))(
        params, half, jnp.dtype(state), ReversibleGradient()
    )
    want = jax.jit(jax.grad(loss), static_argnums=(1, 2, 3))(
        params, case.f, jnp.dtype("float32"), Unrolled()
    )
    # Sixteen steps, each rounded to 2^-8.
    assert problems.error(got, jax.tree.map(np.asarray, want)) <= 5e-2


def test_second_derivatives_and_forward_mode_point_to_unrolled():
    def run(w, rule):
        x = jnp.ones((2, 3))
        sol = jdeq.fixed_point(
            lambda w, z, x: jnp.tanh(w * z + x), w, jnp.zeros_like(x), x,
            solver=Reversible(beta=0.5), gradient=rule, max_steps=5, rtol=0.0, atol=1e-30,
        )  # fmt: skip
        return jnp.sum(sol.z)

    with pytest.raises(NotImplementedError, match="jdeq.ReversibleGradient.*jdeq.Unrolled"):
        jax.grad(jax.grad(run))(0.5, ReversibleGradient())
    gradient = jax.grad(lambda w, c: c * run(w, ReversibleGradient()))
    with pytest.raises(NotImplementedError, match="the reverse pass cannot be differentiated"):
        jax.grad(gradient, argnums=1)(0.5, 2.0)  # through the weight of the loss alone
    unrolled = functools.partial(run, rule=Unrolled())
    second = jax.jit(jax.grad(jax.grad(unrolled)))(0.5)
    h = 1e-3
    first = jax.jit(jax.grad(unrolled))
    assert float(second) == pytest.approx(
        float(first(0.5 + h) - first(0.5 - h)) / (2 * h), rel=1e-2
    )
    assert float(jax.jvp(unrolled, (0.5,), (1.0,))[1]) == pytest.approx(float(first(0.5)), rel=1e-5)


@pytest.mark.parametrize("rule", [jdeq.Implicit(), jdeq.OneStep()])
def test_other_rules_with_the_reversible_solver(rule):
    """The pair is a solver like any other; Implicit solves its adjoint with Anderson."""
    case = TABLE["tanh"]
    z, _, want = problems.truth("tanh")
    with jax.enable_x64(True):
        params, z0, x = case.inputs("float64")

        def loss(params, x):
            begin = problems.start(params, z0)
            sol = jdeq.fixed_point(
                case.f, params, begin, x, solver=Reversible(beta=0.8), gradient=rule,
                rtol=1e-8, max_steps=100,
            )  # fmt: skip
            return problems.loss(sol.z, begin), sol

        grads, sol = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    assert np.all(sol.stats.status == Status.CONVERGED)
    assert problems.error(sol.z, z) <= 1e-7
    if rule.exact:
        assert problems.error(grads, want) <= 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reversible(beta=1.0), "jdeq.Reversible: beta must not be 1.*cannot be undone"),
        (lambda: Reversible(beta=0.0), r"beta must lie in \(0, 2\).*got 0"),
        (lambda: Reversible(beta=2.0), r"beta must lie in \(0, 2\).*got 2"),
        (lambda: Reversible(beta=float("nan")), r"beta must lie in \(0, 2\).*got nan"),
        (
            lambda: ReversibleGradient(rtol=0.0),
            "jdeq.ReversibleGradient: rtol must be finite and > 0",
        ),
    ],
)
def test_refused_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_rule_needs_the_reversible_solver():
    with pytest.raises(ValueError, match="jdeq.ReversibleGradient: the solver must be jdeq.Rev"):
        jdeq.fixed_point(
            lambda p, z, x: 0.5 * z + x, (), jnp.zeros((1, 2)), jnp.ones((1, 2)),
            solver=jdeq.Picard(), gradient=ReversibleGradient(),
        )  # fmt: skip


def test_anchors_are_closer_where_steps_are_harder_to_undo():
    def every(beta, dtype, **options):
        return ReversibleGradient(**options).anchor_every(
            Reversible(beta=beta), jnp.zeros(1, dtype)
        )

    assert [every(b, jnp.float32) for b in (0.3, 0.5, 0.8, 0.95)] == [8, 4, 2, 1]
    assert every(1.5, jnp.float32) < every(0.5, jnp.float32)
    assert every(0.5, jnp.bfloat16) == 1
    with jax.enable_x64(True):
        assert every(0.5, jnp.float64) > 15
    assert every(0.5, jnp.float32, rtol=1e-3) > every(0.5, jnp.float32)


@given(
    k=st.floats(0.05, 0.95),
    share=st.floats(0.02, 0.98),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_convergence_theorem(k, share, seed):
    """A k-Lipschitz map contracts the pair by |1 - beta| + beta k a step, beta < 2 / (k + 1)."""
    beta = share * 2 / (k + 1)
    if beta == 1.0:
        return
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((6, 6))
    w *= k / np.linalg.norm(w, 2)
    x = rng.standard_normal(6)
    fixed = np.zeros(6)
    for _ in range(2000):
        fixed = np.tanh(w @ fixed + x)
    with jax.enable_x64(True):
        solver = Reversible(beta=beta)

        def f(z):
            return jnp.tanh(z @ w.T + x)

        state = solver.init(f, jnp.asarray(rng.standard_normal((1, 6))), ndim=1)
        rate = abs(1 - beta) + beta * k
        assert rate < 1
        for _ in range(12):
            before = max(np.linalg.norm(a[0] - fixed) for a in (state.y, state.z))
            state = solver.step(f, state, ndim=1)
            after = max(np.linalg.norm(a[0] - fixed) for a in (state.y, state.z))
            assert after <= rate * before + 1e-12


def _evaluations(case, beta):
    params, z0, x = case.inputs("float32")
    sol = jdeq.fixed_point(
        case.f, params, z0, x, solver=Reversible(beta=beta), rtol=1e-5, max_steps=200
    )
    assert np.all(sol.stats.status == Status.CONVERGED)
    return int(sol.stats.nfe.max()), sol.z


def test_proposed_beta_over_relaxes_a_symmetric_map():
    """Problem B, rho 0.92 at the solution: at most 40 evaluations where Picard takes 92."""
    case = problems.full_b()
    params, _, x = case.inputs("float32")
    slow, z = _evaluations(case, 0.8)
    proposal = jdeq.propose_beta(case.f, params, z[:4], x[:4], jax.random.key(0))
    assert 1.3 < proposal.beta < 1.6
    fast, _ = _evaluations(case, proposal.beta)
    assert fast <= 40 < slow


def test_proposed_beta_stays_low_for_a_complex_spectrum():
    case = TABLE["rotation"]
    params, z0, x = case.inputs("float32")
    beta, rate = jdeq.propose_beta(case.f, params, z0, x, jax.random.key(0))
    assert beta < 1
    # One eigenvalue pair, 0.9 exp(+-i): the rate is that of the pair map's 4 x 4 matrix.
    turn = 0.9 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    eye = np.eye(2)
    y_row = np.hstack([(1 - beta) * eye, beta * turn])
    z_row = np.hstack([np.zeros((2, 2)), (1 - beta) * eye]) + beta * turn @ y_row
    assert rate == pytest.approx(
        np.abs(np.linalg.eigvals(np.vstack([y_row, z_row]))).max(), rel=1e-3
    )
    with pytest.raises(ValueError, match="num_products must be >= 1; got 0"):
        jdeq.propose_beta(case.f, params, z0, x, jax.random.key(0), num_products=0)


@pytest.mark.usefixtures("optimized")
def test_temporary_memory_is_a_quarter_of_unrolled():
    """Compiler-counted bytes of value_and_grad, a transformer cell, 64 steps, beta 0.5."""
    f, params, z0, x = transformer_cell(batch=4, tokens=32, width=64, heads=4)

    def bytes_of(rule, steps):
        def loss(params, x):
            sol = jdeq.fixed_point(
                f, params, z0, x, solver=Reversible(beta=0.5), gradient=rule, max_steps=steps
            )
            return jnp.mean(sol.z**2)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours = bytes_of(ReversibleGradient(), 64)
    assert ours <= bytes_of(Unrolled(checkpoint=False), 64) / 4
    # Checkpointed it is 0.28 of that at 64 steps; of what each further step takes it is a sixth.
    grown = bytes_of(Unrolled(), 256) - bytes_of(Unrolled(), 64)
    assert bytes_of(ReversibleGradient(), 256) - ours <= grown / 4
