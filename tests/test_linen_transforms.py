"""jdeq.linen.DEQ inside Linen compositions and transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from test_linen import Cell, D, X, bare, close, drop, make

from jdeq.linen import DEQ


def test_sequential():
    # Sequential hands the fields of a solution to the next layer one by one.
    deq, variables = make()
    model = nn.Sequential([nn.Dense(D), deq, lambda z, stats, trace: z, nn.Dense(2)])
    params = model.init(jax.random.key(2), X)
    out = model.apply(params, X)
    layers = params["params"]
    h = X @ layers["layers_0"]["kernel"] + layers["layers_0"]["bias"]
    z = bare(layers["layers_1"]["cell"], h).z
    close(out, z @ layers["layers_3"]["kernel"] + layers["layers_3"]["bias"])
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, X) ** 2))(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_remat_changes_nothing():
    deq, variables = make(rate=0.4)
    again = nn.remat(DEQ)(cell=Cell(0.4), rtol=1e-6, max_steps=60)

    def loss(module):
        return lambda v: jnp.sum(jnp.sin(drop(module, v, 1).z))

    close(*(jax.value_and_grad(loss(m))(variables) for m in (deq, again)))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        # parent=None: the DEQ adopts the cell; else Linen files it beside the DEQ, as Cell_0.
        sol = DEQ(cell=Cell(parent=None), rtol=1e-6, max_steps=60, name="deq")(x)
        return sol.z, sol.stats.nfe


def test_scan_over_layers():
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    variables = stack.init(jax.random.key(3), X, None)

    def scanned(variables):
        z, nfe = stack.apply(variables, X, None)
        return jnp.sum(jnp.sin(z)), nfe

    def looped(variables):
        z = X
        for i in range(3):
            params = jax.tree.map(lambda a, i=i: a[i], variables["params"]["deq"]["cell"])
            z = bare(params, z).z
        return jnp.sum(jnp.sin(z)), None

    (value, nfe), gradient = jax.value_and_grad(scanned, has_aux=True)(variables)
    (expected, _), reference = jax.value_and_grad(looped, has_aux=True)(variables)
    assert nfe.shape == (3, 4)
    close((value, gradient), (expected, reference), 2e-5)  # three layers of rounding and tolerance


def test_vmapped_modules():
    ensemble = nn.vmap(
        DEQ, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
    )(cell=Cell(), rtol=1e-6, max_steps=60)
    variables = ensemble.init(jax.random.key(4), X)
    z = ensemble.apply(variables, X).z
    assert z.shape == (3, 4, D)
    for i in range(3):
        params = jax.tree.map(lambda a, i=i: a[i], variables["params"]["cell"])
        close(z[i], bare(params, X).z, 1e-5)


def test_two_layers_in_one_model_and_one_backward_pass():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            z = DEQ(cell=Cell(parent=None), rtol=1e-6, max_steps=60, name="first")(x).z
            second = DEQ(cell=Cell(parent=None), rtol=1e-6, max_steps=60, name="second")
            return second(z + x).z

    model = Two()
    variables = model.init(jax.random.key(5), X)
    _, state = model.apply(variables, X, mutable=["jdeq"])
    assert set(state["jdeq"]) == {"first", "second"}

    def function(params):
        z = bare(params["first"]["cell"], X).z
        return jnp.sum(jnp.sin(bare(params["second"]["cell"], z + X).z))

    ours = jax.grad(lambda v: jnp.sum(jnp.sin(model.apply(v, X))))(variables)
    close(ours["params"], jax.grad(function)(variables["params"]), 1e-5)
