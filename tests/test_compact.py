"""``compact``: a batch whose easy samples are done works on the hard ones alone."""

import collections

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
import jdeq.linen
import jdeq.nnx
from jdeq.traced import compact_sizes

WIDTH = 6
HARD = (3, 9)


class Shared(jdeq.Picard):
    """A solver that keeps something for all samples together."""

    shared = ("fz",)


class Mixing(jdeq.Picard):
    """A solver for which batch mates matter."""

    mixes = True


class Scheduled(jdeq.Picard):
    """A solver whose state has an array that is no sample's."""

    def init(self, f, z, *, ndim):
        state = super().init(f, z, ndim=ndim)
        return collections.namedtuple("State", "z fz dampings")(*state, jnp.ones(3))


def problem(samples=16):
    """tanh maps of which two samples take many more steps; (f, params, z0, x)."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    w = jnp.asarray((q * np.linspace(-0.9, 0.98, WIDTH)) @ q.T)
    gain = jnp.asarray([1.0 if i in HARD else 0.3 for i in range(samples)])
    x = {"gain": gain, "b": jnp.asarray(0.1 * rng.standard_normal((samples, WIDTH)))}

    def f(w, z, x):
        return jnp.tanh(x["gain"][:, None] * (z @ w.T) + x["b"])

    return f, w, jnp.zeros((samples, WIDTH)), x


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def dense_gradient(w, x):
    """Gradient of sum(z*^2) into w: Newton's method and one dense solve a sample."""
    total, states = np.zeros_like(w), []
    for gain, b in zip(np.asarray(x["gain"]), np.asarray(x["b"]), strict=True):
        z = np.zeros(WIDTH)
        for _ in range(200):
            fz = np.tanh(gain * w @ z + b)
            jacobian = (1 - fz**2)[:, None] * gain * w
            z = z + np.linalg.solve(np.eye(WIDTH) - jacobian, fz - z)
        adjoint = np.linalg.solve(np.eye(WIDTH) - jacobian.T, 2 * z)
        total += np.outer((1 - fz**2) * gain * adjoint, z)
        states.append(z)
    return np.array(states), total


def test_sizes_fall_to_one_sample():
    assert compact_sizes(64, 4) == [16, 4, 1]
    assert compact_sizes(63, 16) == [3]
    assert compact_sizes(10, 1) == compact_sizes(3, 4) == []


@pytest.mark.parametrize(
    "solver", [jdeq.Picard(), jdeq.Anderson(), jdeq.Broyden(), jdeq.NewtonKrylov()], ids=str
)
def test_state_and_gradient_are_those_of_a_dense_solve(solver):
    f, w, z0, x = problem()

    def solved(w, probe):
        sol = jdeq.fixed_point(
            f, w, z0, x, solver=solver, rtol=1e-10, max_steps=2000, compact=4, probe=probe
        )
        return jnp.sum(sol.z**2), sol

    grad = jax.jit(jax.grad(solved, argnums=(0, 1), has_aux=True))
    (gradient, report), sol = grad(w, jdeq.backward_probe(16))
    z, truth = dense_gradient(np.asarray(w), x)
    np.testing.assert_allclose(sol.z, z, atol=1e-7)  # 1e-10 over 1 - 0.98
    np.testing.assert_allclose(gradient, truth, rtol=1e-6, atol=1e-7)
    assert (sol.stats.status == jdeq.Status.CONVERGED).all()
    hard = np.isin(np.arange(16), HARD)
    assert (report[~hard, 0] <= report[hard, 0].min()).all()
    assert (report[:, 1] <= 1e-10).all()


@pytest.mark.parametrize("solver", [jdeq.Picard(), jdeq.Anderson()], ids=str)
def test_what_is_evaluated_is_what_is_running(solver):
    f, w, z0, x = problem()
    seen = []

    def watched(w, z, x):
        jax.debug.callback(lambda: seen.append(z.shape[0]))
        return f(w, z, x)

    sol = jdeq.fixed_point(watched, w, z0, x, solver=solver, max_steps=2000, compact=8)
    jax.effects_barrier()
    nfe = np.sort(np.asarray(sol.stats.nfe))
    # All 16 until the third last is done, then 2, then 1 (2 // 8 = 0: not fewer).
    assert seen.count(16) == nfe[-3]
    assert seen.count(2) == nfe[-1] - nfe[-3]
    plain = jdeq.fixed_point(f, w, z0, x, solver=solver, max_steps=2000)
    assert (plain.stats.nfe == sol.stats.nfe).all()
    np.testing.assert_allclose(sol.z, plain.z, rtol=1e-10)


def test_samples_that_fail_and_budgets_that_end_are_reported_as_without():
    f, w, z0, x = problem()
    x["b"] = x["b"].at[5].set(jnp.nan)
    for steps in (2, 20):  # with all and with few samples running at the end
        plain, compact = (
            jdeq.fixed_point(
                f, w, z0, x, solver=jdeq.Picard(), max_steps=steps, trace=True, compact=c
            )
            for c in (1, 4)
        )
        assert (plain.stats.status == compact.stats.status).all()
        assert (plain.stats.nfe == compact.stats.nfe).all()
        np.testing.assert_allclose(compact.stats.residual, plain.stats.residual, rtol=1e-9)
        np.testing.assert_allclose(*(np.asarray(s.trace) for s in (compact, plain)), rtol=1e-9)
        np.testing.assert_allclose(compact.z, plain.z, rtol=1e-9)


def test_positions_of_a_causal_solve_stay_with_their_sample():
    f, w, _, x = problem(4)
    past = jnp.asarray(0.05 * np.tril(np.ones((5, 5)), -1))

    def causal(w, z, x):
        moved = z + jnp.einsum("ts,bsd->btd", past, z)
        return jnp.tanh(x["gain"][:, None, None] * (moved @ w.T) + x["b"][:, None])

    z0 = jnp.zeros((4, 5, WIDTH))
    plain, compact = (
        jdeq.fixed_point(causal, w, z0, x, causal=True, rtol=1e-8, max_steps=500, compact=c)
        for c in (1, 4)
    )
    assert (plain.stats.nfe == compact.stats.nfe).all()
    np.testing.assert_allclose(compact.z, plain.z, rtol=1e-9)


def test_forward_mode_second_order_and_vmap():
    f, w, z0, x = problem(4)

    def loss(compact, s):
        sol = jdeq.fixed_point(
            f, s * w, z0, x, solver=jdeq.Picard(), rtol=1e-12, max_steps=2000, compact=compact
        )
        return jnp.sum(sol.z**2)

    derivatives = (
        lambda g: jax.jvp(g, (0.9,), (1.0,))[1],
        lambda g: jax.grad(jax.grad(g))(0.9),
        lambda g: jax.vmap(g)(jnp.array([0.5, 0.9])),
    )
    for derivative in derivatives:

        @jax.jit
        def both(derivative=derivative):
            return [derivative(lambda s, c=c: loss(c, s)) for c in (1, 4)]

        plain, compact = both()
        np.testing.assert_allclose(compact, plain, rtol=1e-7)


def test_gradients_of_captured_arrays():
    f, w, z0, x = problem(4)

    def loss(compact, w):
        sol = jdeq.fixed_point(
            lambda _, z, x: f(w, z, x), (), z0, x, rtol=1e-10, max_steps=999, compact=compact
        )
        return jnp.sum(sol.z**2)

    plain, compact = (jax.grad(lambda w, c=c: loss(c, w))(w) for c in (1, 4))
    np.testing.assert_allclose(compact, plain, rtol=1e-6)


def test_errors_say_what_must_hold():
    f, w, z0, x = problem(4)
    mask = jnp.ones((4, WIDTH))

    def solve(f=f, x=x, compact=4, **options):
        jdeq.fixed_point(f, w, z0, x, compact=compact, **options)

    with pytest.raises(ValueError, match="compact must be >= 1; got 0"):
        solve(compact=0)
    with pytest.raises(ValueError, match="batch_ndim must be >= 1; got 0"):
        solve(batch_ndim=0)
    for rule, solver in (
        (jdeq.Unrolled(), jdeq.Anderson()),
        (jdeq.SharedInverse(), jdeq.Broyden()),
    ):
        with pytest.raises(ValueError, match="a rule that keeps neither steps nor solver state"):
            solve(gradient=rule, solver=solver)
    for solver in (Shared(), Scheduled(), Mixing()):
        with pytest.raises(ValueError, match="a solver whose state is each sample's own"):
            solve(solver=solver)
    with pytest.raises(ValueError, match="a stop test, test_every < max_steps; got 40 and 40"):
        solve(test_every=40)
    with pytest.raises(ValueError, match="the 4 samples as the first axis of every leaf"):
        solve(x=x | {"b": x["b"][0]})
    with pytest.raises(ValueError, match="without params or captured arrays that have one entry"):
        solve(f=lambda w, z, x: f(w, z, x) * mask)


def test_layers_pass_it_on_and_refuse_cells_that_draw():
    class Cell(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, z, x):
            z = flax.linen.Dense(WIDTH, kernel_init=flax.linen.initializers.normal(0.1))(z)
            return jnp.tanh(z + x)

    class Drawing(Cell):
        @flax.linen.compact
        def __call__(self, z, x):
            return flax.linen.Dropout(0.5, deterministic=False)(jnp.tanh(0.1 * z + x))

    class Dropping(flax.nnx.Module):
        def __init__(self, rngs):
            self.dropout = flax.nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, z, x):
            return self.dropout(jnp.tanh(0.1 * z + x))

    x = problem(4)[3]["b"]
    layer = jdeq.linen.DEQ(Cell(), compact=4)
    variables = layer.init(jax.random.key(0), x)
    plain, compact = (
        np.asarray(deq.apply(variables, x)[0]) for deq in (jdeq.linen.DEQ(Cell()), layer)
    )
    np.testing.assert_allclose(compact, plain, rtol=1e-9)
    keys = {"dropout": jax.random.key(1)}  # for other layers: this cell does not draw
    np.testing.assert_allclose(layer.apply(variables, x, rngs=keys)[0], plain, rtol=1e-9)
    for rngs in (keys, jax.random.key(1)):
        with pytest.raises(ValueError, match="a cell that draws nothing.*dropout"):
            jdeq.linen.DEQ(Drawing(), compact=4).apply(variables, x, rngs=rngs)
    with pytest.raises(ValueError, match="a cell that draws nothing.*dropout"):
        jdeq.nnx.DEQ(Dropping(flax.nnx.Rngs(0)), compact=4)(x)


def test_devices_that_share_a_batch_and_explicit_axes():
    f, w, z0, x = problem()
    automatic, explicit = (
        jax.make_mesh((2,), ("data",), axis_types=(kind,))
        for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit)
    )

    def loss(compact, f, w, z0, x):
        sol = jdeq.fixed_point(f, w, z0, x, rtol=1e-10, max_steps=999, compact=compact)
        return jnp.sum(sol.z**2)

    def over_devices(f):
        def local(w, z0, x):
            return jax.lax.psum(loss(4, f, w, z0, x), "data")

        parts = (jax.P(), jax.P("data"), jax.P("data"))
        return jax.shard_map(local, mesh=automatic, in_specs=parts, out_specs=jax.P())

    plain = jax.grad(lambda w: loss(1, f, w, z0, x))(w)
    np.testing.assert_allclose(jax.jit(jax.grad(over_devices(f)))(w, z0, x), plain, rtol=1e-6)
    with pytest.raises(ValueError, match="inside shard_map needs an f that captures nothing"):
        jax.jit(over_devices(lambda _, z, x: f(w, z, x)))(w, z0, x)
    with jax.set_mesh(explicit):
        split = jax.device_put(z0, jax.NamedSharding(explicit, jax.P("data")))
        with pytest.raises(ValueError, match="arrays without explicit mesh axes"):
            loss(4, f, w, split, x)
