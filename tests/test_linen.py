"""jdeq.linen.DEQ: equal to the bare function, with randomness fixed within a call."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.linen import DEQ

D = 6
X = jax.random.normal(jax.random.key(0), (4, D))
INITIALISED = []


def counted_init(key, shape, dtype=jnp.float32):
    if not isinstance(key, jax.core.Tracer):  # Flax also calls it abstractly, to check shapes
        INITIALISED.append(shape)
    return 0.5 * jax.random.normal(key, shape, dtype) / shape[0] ** 0.5


class Cell(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, z, x):
        drop = nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))
        h = drop(nn.Dense(D, kernel_init=counted_init, name="inner")(z))
        return jnp.tanh(h + nn.Dense(D, name="outer")(x))


class WideCell(nn.Module):
    """A state that is not like x, with its own start."""

    def initial_state(self, x):
        return {"h": jnp.full((x.shape[0], 3), 0.25)}

    @nn.compact
    def __call__(self, z, x):
        return {"h": 0.5 * jnp.tanh(z["h"] + nn.Dense(3)(x))}


class NormCell(nn.Module):
    frozen: bool

    @nn.compact
    def __call__(self, z, x):
        h = nn.BatchNorm(use_running_average=self.frozen)(z)
        return 0.1 * h + x


def make(rate=0.0, rtol=1e-6, **options):
    deq = DEQ(cell=Cell(rate), rtol=rtol, max_steps=60, **options)
    return deq, deq.init(jax.random.key(1), X)


def bare(params, x, **options):
    def f(params, z, x):
        return Cell().apply({"params": params}, z, x)

    return jdeq.fixed_point(f, params, jnp.zeros_like(x), x, rtol=1e-6, max_steps=60, **options)


def close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b
    )


def test_the_cell_is_initialised_once():
    INITIALISED.clear()
    deq, variables = make()
    assert INITIALISED == [(D, D)]
    assert set(variables) == {"params"}
    assert jax.tree.map(jnp.shape, variables["params"]["cell"]["inner"]) == {
        "bias": (D,), "kernel": (D, D),
    }  # fmt: skip
    deq.apply(variables, X)
    assert len(INITIALISED) == 1


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        (jdeq.Anderson(), jdeq.Implicit()),
        (jdeq.Broyden(), jdeq.SharedInverse()),
        (jdeq.Picard(), jdeq.Unrolled()),
        (jdeq.NewtonKrylov(), jdeq.Phantom()),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_bare_function(solver, gradient):
    deq, variables = make(solver=solver, gradient=gradient)

    def module(variables, x):
        sol = deq.apply(variables, x)
        return jnp.sum(jnp.sin(sol.z)), sol

    def function(params, x):
        sol = bare(params, x, solver=solver, gradient=gradient)
        return jnp.sum(jnp.sin(sol.z)), sol

    ours = jax.value_and_grad(module, argnums=(0, 1), has_aux=True)(variables, X)
    params = variables["params"]["cell"]
    theirs = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(params, X)
    close(ours[0], theirs[0])
    close(ours[1][0]["params"]["cell"], theirs[1][0])
    close(ours[1][1], theirs[1][1])


def test_probe_trace_and_start_are_passed_on():
    deq, variables = make(trace=True)
    sol = deq.apply(variables, X)
    again = deq.apply(variables, X, sol.z)
    assert sol.trace.shape == (60, 4) and (again.stats.nfe == 1).all()
    report = jax.grad(lambda p: jnp.sum(deq.apply(variables, X, probe=p).z))(jdeq.backward_probe())
    assert 2 <= report[0] <= 60 and report[1] <= 1e-6


def test_initial_state_of_the_cell():
    deq = DEQ(cell=WideCell())
    sol, variables = deq.init_with_output(jax.random.key(0), X)
    assert sol.z["h"].shape == (4, 3)
    again = deq.apply(variables, X, {"h": jnp.full((4, 3), 0.25)})
    np.testing.assert_array_equal(sol.z["h"], again.z["h"])


def drop(deq, variables, seed, x=X):
    return deq.apply(variables, x, rngs={"dropout": jax.random.key(seed)})


def test_dropout_masks_are_fixed_in_a_call_and_differ_between_calls():
    deq, variables = make(rate=0.4)
    first, again, other = (drop(deq, variables, seed) for seed in (1, 1, 2))
    # Converged to 1e-6: a mask that changed between evaluations would leave a residual near 1.
    for sol in (first, other):
        assert (sol.stats.status == jdeq.Status.CONVERGED).all()
        assert (sol.stats.residual <= 1e-6).all()
    np.testing.assert_array_equal(first.z, again.z)
    off = deq.apply(variables, X)
    assert jnp.abs(first.z - other.z).max() > 0.01 < jnp.abs(first.z - off.z).max()


def test_two_calls_of_one_module_draw_two_masks():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            deq = DEQ(cell=Cell(0.4), rtol=1e-6, max_steps=60)
            return deq(x).z, deq(x).z

    model = Twice()
    variables = model.init(jax.random.key(0), X)
    one, two = drop(model, variables, 1)
    assert jnp.abs(one - two).max() > 0.01
    close(*model.apply(variables, X))


def test_the_backward_pass_uses_the_mask_of_the_forward_pass():
    with jax.enable_x64(True):
        x = X.astype(jnp.float64)
        deq = DEQ(cell=Cell(0.4), rtol=1e-13, max_steps=200)
        variables = deq.init(jax.random.key(1), x)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), variables)

        def loss(scale):
            scaled = jax.tree.map(lambda a: scale * a, params)
            return jnp.sum(jnp.sin(drop(deq, scaled, 1, x).z))

        h = 1e-5
        difference = (loss(1.0 + h) - loss(1.0 - h)) / (2 * h)
        # The differences are good to h^2 of truncation and to the solves' 1e-13 over 2 h, a few
        # times 5e-9.
        np.testing.assert_allclose(jax.grad(loss)(1.0), difference, rtol=1e-7)


def test_evaluation_mode_has_gradients():
    deq, variables = make(rate=0.4)
    gradient = jax.grad(lambda x: jnp.sum(deq.apply(variables, x).z))(X)
    expected = jax.grad(lambda x: jnp.sum(bare(variables["params"]["cell"], x).z))(X)
    close(gradient, expected)


def test_statistics_and_penalty_are_sown_on_request():
    deq, variables = make(rate=0.4)
    sol, state = deq.apply(variables, X, mutable=["jdeq"])
    assert set(state["jdeq"]) == {"nfe", "residual", "status"}
    for name, (value,) in state["jdeq"].items():
        np.testing.assert_array_equal(value, getattr(sol.stats, name))
    assert isinstance(deq.apply(variables, X), jdeq.Solution)

    def penalty(variables, seed):
        rngs = {"dropout": jax.random.key(1), "jacobian": jax.random.key(seed)}
        sol, state = deq.apply(variables, X, mutable=["jdeq"], rngs=rngs)
        return state["jdeq"]["jacobian_penalty"][0], sol

    # Linear in the mask: with the randomness of the solve, the mean over probes is the dense value.
    draws = jax.vmap(lambda seed: penalty(variables, seed)[0])(jnp.arange(400))
    assert draws.shape == (400, 4)
    _, sol = penalty(variables, 0)
    np.testing.assert_array_equal(sol.z, drop(deq, variables, 1).z)
    kept = masks(variables, sol.z)
    kernel = variables["params"]["cell"]["inner"]["kernel"]
    jacobian = (1 - sol.z**2)[:, None, :] * kernel[None] * kept[:, None, :] / 0.6
    expected = jnp.sum(jacobian**2, axis=(1, 2)) / D
    error = np.std(draws, axis=0) / 400**0.5
    assert (np.abs(np.mean(draws, axis=0) - expected) < 4 * error).all()  # four standard errors
    gradient = jax.grad(lambda v: jnp.sum(penalty(v, 3)[0]))(variables)
    assert jnp.abs(gradient["params"]["cell"]["inner"]["kernel"]).max() > 0


def test_another_penalty_is_sown_in_its_place():
    """Called with the problem, its solution, the key and the axes; with the solve's randomness."""

    def penalty(f, params, z, x, key, *, batch_ndim):
        assert batch_ndim == 1
        return jnp.abs(f(params, z, x) - z).max(axis=1) + jax.random.uniform(key)

    deq, variables = make(rate=0.4)
    found = []
    for seed in (0, 0, 1):
        rngs = {"dropout": jax.random.key(1), "jacobian": jax.random.key(seed)}
        _, state = deq.clone(penalty=penalty).apply(variables, X, mutable=["jdeq"], rngs=rngs)
        found.append(state["jdeq"]["jacobian_penalty"][0])
    assert found[0].shape == (4,) and (found[0] == found[1]).all() and (found[0] != found[2]).all()
    # at its solution f moves nothing, up to the tolerance: all that is left is the draw
    np.testing.assert_allclose(found[0], found[0][0], atol=1e-2)


def masks(variables, z):
    """Which inner units a call with dropout key 1 kept, read off its solution."""
    cell = variables["params"]["cell"]
    plain = z @ cell["inner"]["kernel"] + cell["inner"]["bias"]
    outer = X @ cell["outer"]["kernel"] + cell["outer"]["bias"]
    dropped = jnp.abs(jnp.arctanh(z) - outer)
    kept = jnp.abs(jnp.arctanh(z) - outer - plain / 0.6)
    assert bool(jnp.all(jnp.minimum(dropped, kept) < 1e-4))
    return (kept < dropped).astype(jnp.float32)


def test_batch_norm_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"writes batch_stats\. Use GroupNorm .* outside the DEQ"):
        deq = DEQ(cell=NormCell(frozen=False))
        variables = deq.init(jax.random.key(0), X)
        deq.apply(variables, X, mutable=["batch_stats"])
    deq = DEQ(cell=NormCell(frozen=True))
    variables = deq.init(jax.random.key(0), X)
    assert (deq.apply(variables, X).stats.status == jdeq.Status.CONVERGED).all()


def test_a_module_of_another_owner_in_the_cell_is_refused():
    class Tied(nn.Module):
        layer: nn.Module

        def __call__(self, z, x):
            return jnp.tanh(0.3 * self.layer(z) + x)

    class Model(nn.Module):
        def setup(self):
            self.layer = nn.Dense(D)
            self.deq = DEQ(Tied(self.layer))

        def __call__(self, x):
            return self.deq(self.layer(x)).z

    with pytest.raises(ValueError, match="the cell must own the modules that it calls"):
        Model().init(jax.random.key(0), X)


def test_repeated_eager_calls_do_not_compile_again():
    run = importlib.import_module("jdeq.fixed_point")._run
    deq, variables = make(rate=0.4)
    deq.apply(variables, X, rngs={"dropout": jax.random.key(2)})
    before = run._cache_size()
    for seed in (3, 4):
        deq.apply(variables, X, rngs={"dropout": jax.random.key(seed)})
    assert run._cache_size() == before
