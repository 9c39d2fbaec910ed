"""vmap of a solve of one sample is the solve of a batch: in its program, its results, its order."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq

SOLVERS = [jdeq.Picard(), jdeq.Anderson(), jdeq.Broyden(), jdeq.NewtonKrylov()]
RULES = [
    (jdeq.Anderson(), jdeq.Implicit()),
    (jdeq.Broyden(), jdeq.SharedInverse(refine=2)),
    (jdeq.Reversible(beta=0.8), jdeq.ReversibleGradient()),
    (jdeq.Anderson(), jdeq.Phantom()),
    (jdeq.Anderson(), jdeq.Neumann()),
    (jdeq.Picard(), jdeq.Unrolled()),
]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 12)) * np.arange(1.0, 7.0)[:, None]
W = 0.2 * RNG.standard_normal((12, 12))  # more than a history holds


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def f(w, z, x):
    return jnp.tanh(z @ w.T + x)


def _solve(w, x, **options):
    return jdeq.fixed_point(f, w, jnp.zeros_like(x), x, **{"rtol": 1e-8} | options)


def _loss(w, x, **options):
    return jnp.sum(_solve(w, x, **options).z ** 3)


def _mapped(w, x, **options):
    return jax.vmap(lambda x: _solve(w, x, batch_ndim=0, **options))(x)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_its_program_is_that_of_the_batch(solver, optimized):
    def gradient(solve):
        return jax.jit(jax.grad(lambda w, x: jnp.sum(solve(w, x, solver=solver).z ** 3)))

    alone = gradient(_mapped).lower(W, X).compile()
    together = gradient(_solve).lower(W, X).compile()
    # By JAX's own rule, a loop under vmap selects the whole carry of the lanes that stopped.
    for word in (" select(", " scatter(", " dynamic-update-slice(", " while("):
        assert alone.as_text().count(word) == together.as_text().count(word), word
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (alone, together)]
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_all_that_a_solve_returns(solver):
    options = {"solver": solver, "trace": True}
    want, got = _solve(W, X, **options), jax.jit(lambda x: _mapped(W, x, **options))(X)
    assert got.trace.shape == (6, 40)
    np.testing.assert_array_equal(got.stats.nfe, want.stats.nfe)
    np.testing.assert_array_equal(got.stats.status, want.stats.status)
    np.testing.assert_allclose(got.z, want.z, atol=1e-9)
    np.testing.assert_allclose(got.trace, want.trace.T, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize(("solver", "rule"), RULES, ids=repr)
def test_gradients_lane_by_lane(solver, rule):
    gradient = jax.grad(_loss, argnums=(0, 1))

    def one(w, x):
        # Looser, as Broyden's last factors magnify rounding.
        return gradient(w, x, solver=solver, gradient=rule, batch_ndim=0, rtol=1e-4)

    got = jax.jit(jax.vmap(one, (None, 0)))(W, X)
    for i, x in enumerate(X):
        for a, b in zip(got, one(W, x), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("of", [jax.hessian, jax.jacfwd, lambda g: jax.jacfwd(jax.grad(g))])
def test_higher_orders_lane_by_lane(of):
    derivative = of(lambda w, x: _loss(w, x, batch_ndim=0, rtol=1e-12))
    got = jax.jit(jax.vmap(derivative, (None, 0)))(W, X)
    want = jnp.stack([derivative(W, x) for x in X])
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)


def test_mapped_twice_over_parameters_and_inputs():
    ws = np.stack([W, -W, 0.5 * W])

    def one(w, x):
        return _solve(w, x, batch_ndim=0, trace=True)

    got = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(ws, X)
    for i, w in enumerate(ws):
        want = _solve(w, X, trace=True)
        np.testing.assert_allclose(got.z[i], want.z, atol=1e-9)
        np.testing.assert_array_equal(got.stats.nfe[i], want.stats.nfe)
        np.testing.assert_allclose(got.trace[i], want.trace.T, rtol=1e-2, atol=1e-9)


def test_causal_positions_of_mapped_sequences():
    def mean_of_the_past(w, z, x):
        count = jnp.arange(1, z.shape[-2] + 1)[:, None]
        return jnp.tanh((jnp.cumsum(z, -2) / count) @ w.T + x)

    def solve(x, ndim):
        return jdeq.fixed_point(
            mean_of_the_past, W, jnp.zeros_like(x), x, rtol=1e-11, batch_ndim=ndim, causal=True
        )

    x = np.stack([X, 0.1 * X])
    want, got = solve(x, 1), jax.jit(jax.vmap(lambda x: solve(x, 0)))(x)
    np.testing.assert_allclose(got.z, want.z, atol=1e-9)
    np.testing.assert_array_equal(got.stats.nfe, want.stats.nfe)


def _next(z):
    return jax.lax.ppermute(z, "lanes", [(i, (i + 1) % len(X)) for i in range(len(X))])


@pytest.mark.parametrize(
    ("mates", "known"),
    [
        (lambda z: jax.lax.pmean(z, "lanes"), lambda z: z.mean(0)),
        (_next, lambda z: np.roll(z, 1, axis=0)),  # without an effect in its program
        (jax.jit(_next), lambda z: np.roll(z, 1, axis=0)),
    ],
    ids=["pmean", "ppermute", "ppermute in a jit"],
)
def test_a_map_that_reads_its_mates(mates, known):
    """Lanes are then not samples: the axis has to be there by its name."""

    def with_mates(w, z, x):
        return jnp.tanh(w @ z + x + 0.1 * mates(z))

    def solve(x):
        return jdeq.fixed_point(with_mates, W, jnp.zeros_like(x), x, rtol=1e-11, batch_ndim=0).z

    got = jax.jit(jax.vmap(solve, axis_name="lanes"))(X)
    want = np.zeros_like(X)
    for _ in range(200):
        want = np.tanh(want @ W.T + X + 0.1 * known(want))
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_effects_of_the_map_stay():
    seen = []

    def watched(w, z, x):
        jax.debug.callback(lambda z: seen.append(z), z)
        return jnp.tanh(w @ z + x)

    def solve(x):
        return jdeq.fixed_point(watched, W, jnp.zeros_like(x), x, batch_ndim=0, rtol=1e-8)

    sol = jax.vmap(solve)(X)
    jax.effects_barrier()
    np.testing.assert_allclose(sol.z, _solve(W, X).z, atol=1e-9)
    # Each sample is seen alone, its answer too (callbacks are given float32).
    assert {z.shape for z in seen} == {(12,)}
    for z in sol.z:
        assert min(np.abs(z - one).max() for one in seen) < 1e-6


@pytest.mark.parametrize(("solver", "rule"), RULES, ids=repr)
def test_no_lanes(solver, rule):
    def gradient(x):
        return jax.grad(_loss, argnums=1)(W, x, solver=solver, gradient=rule, batch_ndim=0)

    assert jax.vmap(gradient)(X[:0]).shape == (0, 12)


@pytest.mark.parametrize(
    "solver", [*SOLVERS, jdeq.RestartedAnderson(), jdeq.Reversible(beta=0.8)], ids=repr
)
def test_lanes_split_over_an_explicit_axis(solver):
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(_mapped(W, x, solver=solver).z ** 3))(x)

    want = _solve(W, X, solver=solver).z, gradient(X)
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))):
        x = jax.device_put(X, jax.P("data"))
        got = jax.jit(lambda x: _mapped(W, x, solver=solver).z)(x), jax.jit(gradient)(x)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.sharding.spec[0] == "data"
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_spmd_axis_name_reaches_the_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def laid_out(w, z, x):
        z = jax.lax.with_sharding_constraint(z, jax.NamedSharding(mesh, jax.P(None)))
        return jnp.tanh(w @ z + x)

    def solve(x):
        return jdeq.fixed_point(laid_out, W, jnp.zeros_like(x), x, batch_ndim=0).z

    program = jax.jit(jax.vmap(solve, spmd_axis_name="data")).lower(X).as_text()
    assert '[{"data"}, {}]' in program


def test_a_solve_inside_a_map_compiles_once():
    """Eager calls look the program up; the rule of the inner solve is made anew each time."""

    def outer(w, z, x):
        inner = jdeq.fixed_point(
            lambda w, y, c: jnp.tanh(0.3 * w @ y + c), w, jnp.zeros_like(z), z, batch_ndim=0
        )
        return jnp.tanh(0.3 * inner.z + x)

    run = sys.modules["jdeq.fixed_point"]._run
    sizes = []
    for _ in range(3):
        jdeq.fixed_point(outer, W, jnp.zeros(12), X[0], batch_ndim=0, rtol=1.1e-4)
        sizes.append(run._cache_size())
    assert sizes[0] == sizes[1] == sizes[2]


def test_inside_shard_map_and_around_it():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")

    def loss(split):
        def total(w, x):
            def solve(w, x):
                return _mapped(w, x).z

            if split:
                solve = jax.shard_map(solve, mesh=mesh, in_specs=(jax.P(), rows), out_specs=rows)
            return jnp.sum(solve(w, x) ** 3)

        return total

    ws = np.stack([W, -W])
    got = jax.jit(jax.vmap(jax.grad(loss(split=True)), (0, None)))(ws, X)
    want = jax.jit(jax.vmap(jax.grad(loss(split=False)), (0, None)))(ws, X)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)
