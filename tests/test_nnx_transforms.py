"""jdeq.nnx.DEQ inside NNX compositions and transformations."""

import jax
import jax.numpy as jnp
from flax import nnx
from test_nnx import D, X, bare, close, counts, make, weights


def test_sequential():
    # Sequential hands the fields of a solution to the next layer one by one.
    rngs = nnx.Rngs(2)
    head = nnx.Linear(D, 2, rngs=rngs)
    deq = make()
    model = nnx.Sequential(nnx.Linear(D, D, rngs=rngs), deq, lambda z, stats, trace: z, head)
    h = model.layers[0](X)
    close(model(X), head(bare(weights(deq), h).z))
    gradient = nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_remat_changes_nothing():
    plain, again = make(rate=0.4), make(rate=0.4)

    def loss(deq):
        return jnp.sum(jnp.sin(deq(X).z))

    close(nnx.grad(loss)(plain), nnx.grad(nnx.remat(loss))(again))
    assert counts(plain) == counts(again) == [1, 1]


@nnx.vmap(in_axes=0, out_axes=0)
def ensemble(key):
    return make(seed=key)


def member(deqs, i):
    return jax.tree.map(lambda a: a[i], weights(deqs))


def test_vmapped_modules():
    deqs = ensemble(jax.random.split(jax.random.key(6), 3))
    z = nnx.vmap(lambda deq, x: deq(x).z, in_axes=(0, None), out_axes=0)(deqs, X)
    for i in range(3):
        close(z[i], bare(member(deqs, i), X).z, 1e-5)


def test_scan_over_layers():
    deqs = ensemble(jax.random.split(jax.random.key(6), 3))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def stack(x, deq):
        sol = deq(x)
        return sol.z, sol.stats.nfe

    def loss(deqs):
        z, nfe = stack(X, deqs)
        return jnp.sum(jnp.sin(z)), nfe

    def looped(params):
        z = X
        for i in range(3):
            z = bare(jax.tree.map(lambda a, i=i: a[i], params), z).z
        return jnp.sum(jnp.sin(z))

    gradient, nfe = nnx.grad(loss, has_aux=True)(deqs)
    assert nfe.shape == (3, 4)
    # Three layers of rounding and tolerance.
    close(weights(gradient.cell), jax.grad(looped)(weights(deqs)), 2e-5)


def test_two_layers_in_one_model_and_one_backward_pass():
    class Two(nnx.Module):
        def __init__(self):
            self.first, self.second = make(seed=1), make(seed=2)

        def __call__(self, x):
            return self.second(self.first(x).z + x).z

    def function(first, second):
        return jnp.sum(jnp.sin(bare(second, bare(first, X).z + X).z))

    model = Two()
    gradient = nnx.jit(nnx.grad(lambda m: jnp.sum(jnp.sin(m(X)))))(model)
    expected = jax.grad(function, argnums=(0, 1))(weights(model.first), weights(model.second))
    for name, reference in zip(("first", "second"), expected, strict=True):
        close(weights(gradient[name].cell), reference, 1e-5)
