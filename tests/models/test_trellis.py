"""TrellisNet: the cell's formula, the layers, causality to the bit, gradients, dropout, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import (
    TRELLIS_PTB,
    TRELLIS_WIKITEXT103,
    DEQTrellisNet,
    TrellisCell,
    TrellisConfig,
    TrellisInjection,
    trellis_net,
)

TINY = TrellisConfig(vocab_size=11, width=6, embed_width=4)
CYCLE = dataclasses.replace(TINY, dilations=(1, 2), tied=False)
TOKENS = jax.random.randint(jax.random.key(0), (3, 9), 0, 11)


@functools.cache
def variables_of(config, scale=3.0):
    """Drawn larger than they start, so that no gate is half open and h is not near 0."""
    variables = jax.eval_shape(DEQTrellisNet(config).init, jax.random.key(1), TOKENS)
    return jax.tree.map(
        lambda a: scale * jax.random.normal(jax.random.key(a.size), a.shape) / a.shape[0] ** 0.5,
        variables,
    )


@pytest.mark.parametrize(
    ("config", "published"), [(TRELLIS_PTB, 24e6), (TRELLIS_WIKITEXT103, 180e6)]
)
def test_parameter_counts_of_the_published_configurations(config, published):
    """By hand: two kernels of 2 with gains, one bias, the embedding and the bias of the logits."""
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    shapes = jax.eval_shape(DEQTrellisNet(config).init, jax.random.key(0), tokens)
    count = sum(a.size for a in jax.tree.leaves(shapes["params"]))
    d, e, v = config.width, config.embed_width, config.vocab_size
    assert count == 2 * 4 * d * (d + e) + 3 * 4 * d + v * e + v
    assert abs(count / published - 1) < 0.02


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def step_by_hand(p, h, c, injected, dilation):
    """One gated convolution, position by position, in float64."""
    v = p["direction"]
    w = v * p["gain"] / np.sqrt((v**2).sum(0))
    new_h, new_c = np.zeros_like(h), np.zeros_like(c)
    zero = np.zeros(h.shape[-1])
    for b in range(h.shape[0]):
        for t in range(h.shape[1]):
            inside = t >= dilation
            before = h[b, t - dilation] if inside else zero
            a = np.concatenate([before, h[b, t]]) @ w + p["bias"] + injected[b, t]
            i, o, f, g = np.split(a, 4)
            new_c[b, t] = sigmoid(f) * (c[b, t - dilation] if inside else zero)
            new_c[b, t] += sigmoid(i) * np.tanh(g)
            new_h[b, t] = sigmoid(o) * np.tanh(new_c[b, t])
    return new_h, new_c


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


@pytest.mark.parametrize("dilations", [(1,), (2, 1)])
def test_the_cell_is_its_formula(dilations):
    cell = TrellisCell(width=3, dilations=dilations)
    h, c = jax.random.normal(jax.random.key(2), (2, 2, 5, 3))
    x = tuple(jax.random.normal(jax.random.key(3 + d), (2, 5, 12)) for d in dilations)
    variables = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), a.shape),
        cell.init(jax.random.key(3), {"h": h, "c": c}, TrellisInjection(x, None)),
    )
    got = cell.apply(variables, {"h": h, "c": c}, TrellisInjection(x, None))
    want_h, want_c = wide((h, c))
    for dilation, injected in zip(dilations, wide(x), strict=True):
        p = wide(variables["params"]["gates"])
        want_h, want_c = step_by_hand(p, want_h, want_c, injected, dilation)
    np.testing.assert_allclose(got["h"], want_h, atol=1e-5)
    np.testing.assert_allclose(got["c"], want_c, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, CYCLE])
def test_the_explicit_network_is_a_loop_over_layers(config):
    layers = 4
    model = trellis_net(config, layers=layers)
    variables = variables_of(config)
    logits, solution = jax.jit(model.apply)(variables, TOKENS)
    p = wide(variables["params"])
    x = p["token"]["embedding"][np.asarray(TOKENS)]
    v = p["inject"]["direction"]
    w = v * p["inject"]["gain"] / np.sqrt((v**2).sum(0))
    h = c = np.zeros((*TOKENS.shape, config.width))
    for _ in range(layers):
        for d in config.dilations:
            past = np.concatenate([np.zeros_like(x[:, :d]), x[:, :-d]], axis=1)
            injected = np.concatenate([past, x], axis=-1) @ w
            h, c = step_by_hand(p["cell"]["gates"], h, c, injected, d)
    if config.tied:
        want = h[..., -config.embed_width :] @ p["token"]["embedding"].T + p["bias"]
    else:
        want = h @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(solution.z["h"], h, atol=1e-5)
    np.testing.assert_allclose(logits, want, atol=1e-4)
    assert np.all(solution.stats.nfe == layers + 1)  # the layers and the residual


def test_the_explicit_gradient_is_that_of_the_layers():
    """Against plain backpropagation through applications of the cell, under one dropout mask."""
    with jax.enable_x64(True):
        config = dataclasses.replace(CYCLE, dropout=0.5)
        model = trellis_net(config, layers=3)
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables_of(CYCLE))
        x = TrellisInjection(tuple(jax.random.normal(jax.random.key(5), (2, 3, 9, 24))), None)
        cell = TrellisCell(6, (1, 2), 0.5)
        rngs = {"dropout": jax.random.key(6)}
        gates = {"params": variables["params"]["cell"]}

        def by_hand(gates):
            z = cell.initial_state(x)
            for _ in range(3):
                z = cell.apply(gates, z, x, rngs=rngs)
            return jnp.sum(jnp.sin(z["h"]) + z["c"] ** 2)

        def ours(gates):
            z = jdeq.fixed_point(
                lambda p, z, x: cell.apply(p, z, x, rngs=rngs),
                gates,
                cell.initial_state(x),
                x,
                solver=model.solver,
                gradient=model.gradient,
                rtol=model.rtol,
                atol=model.atol,
                max_steps=model.max_steps,
                causal=model.causal,
            ).z
            return jnp.sum(jnp.sin(z["h"]) + z["c"] ** 2)

        got, want = jax.jit(jax.grad(ours))(gates), jax.jit(jax.grad(by_hand))(gates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)


@pytest.mark.parametrize("max_steps", [1, 4, 15])
@pytest.mark.parametrize(
    "solver", [jdeq.Picard(), jdeq.Anderson(depth=3), jdeq.Broyden(history=4)], ids=repr
)
def test_no_logit_depends_on_a_later_token(solver, max_steps):
    model = DEQTrellisNet(CYCLE, solver=solver, max_steps=max_steps)
    variables = variables_of(CYCLE)
    apply = jax.jit(model.apply)
    logits, solution = apply(variables, TOKENS)
    assert solution.stats.nfe.shape == TOKENS.shape
    changed, _ = apply(variables, TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % 11))
    np.testing.assert_array_equal(logits[:, :5], changed[:, :5])
    assert np.all(np.abs(logits[:, 5] - changed[:, 5]).max(-1) > 0)


@pytest.mark.parametrize(("config", "causal"), [(TINY, True), (CYCLE, False)])
def test_gradient_is_that_of_the_equilibrium(config, causal):
    """Implicit against backpropagation through Picard steps until nothing moves, in float64."""

    def grads(model, variables):
        def loss(variables):
            logits, solution = model.apply(variables, TOKENS)
            return jnp.sum(jnp.sin(logits)), solution

        return jax.grad(loss, has_aux=True)(variables)

    with jax.enable_x64(True):
        solver = jdeq.Anderson()
        model = DEQTrellisNet(config, solver=solver, rtol=1e-11, max_steps=100, causal=causal)
        variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables_of(config, 1.0))
        run = jax.jit(grads, static_argnums=0)
        got, solution = run(model, variables)
        jdeq.check(solution)
        plain = model.clone(solver=jdeq.Picard(), gradient=jdeq.Unrolled(), rtol=1e-13)
        want, _ = run(plain, variables)
        for path, leaf in jax.tree_util.tree_leaves_with_path(got):
            assert np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, want)


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5), (0.4, 0.4)])
def test_one_mask_of_each_kind_for_the_steps_positions_and_evaluations_of_a_call(rates):
    """A cycle of two equal steps is two evaluations; constant text gives a constant state."""
    one, two = (TrellisCell(8, dilations, *rates) for dilations in ((1,), (1, 1)))
    gates = jax.random.normal(jax.random.key(2), (32,)) * jnp.ones((2, 6, 32))
    x = {cell: TrellisInjection((gates,) * n, None) for n, cell in enumerate((one, two), 1)}
    z = {"h": jnp.ones((2, 6, 8)), "c": jnp.zeros((2, 6, 8))}
    variables = one.init(jax.random.key(0), z, x[one])
    rngs = {"dropout": jax.random.key(1)}
    once = one.apply(variables, z, x[one], rngs=rngs)
    twice = one.apply(variables, once, x[one], rngs=rngs)
    cycle = two.apply(variables, z, x[two], rngs=rngs)
    for part in "hc":
        np.testing.assert_allclose(cycle[part], twice[part], atol=1e-6)
        np.testing.assert_allclose(once[part][:, 2:], once[part][:, 1:-1], atol=1e-6)
        assert np.abs(once[part] - one.apply(variables, z, x[one])[part]).max() > 1e-3
    # A mask of h is a sequence's own, the weights that are left are everyone's.
    same = np.allclose(once["h"][0], once["h"][1], atol=1e-6)
    assert same == (rates[0] == 0.0)


def test_dropout_goes_by_the_rng_and_keeps_a_fixed_map():
    config = dataclasses.replace(TINY, input_dropout=0.3, dropout=0.3, output_dropout=0.3)
    model = DEQTrellisNet(config)
    variables = variables_of(config, 1.0)
    apply = jax.jit(model.apply)
    still, _ = apply(variables, TOKENS)
    without, _ = jax.jit(model.clone(config=TINY).apply)(variables, TOKENS)
    np.testing.assert_allclose(still, without, atol=1e-6)
    dropped, solution = apply(variables, TOKENS, rngs={"dropout": jax.random.key(2)})
    jdeq.check(solution)
    assert np.abs(dropped - still).max() > 1e-3


def test_bfloat16_computation():
    model = DEQTrellisNet(TINY, dtype=jnp.bfloat16, rtol=1e-2)
    logits, solution = jax.jit(model.apply)(variables_of(TINY), TOKENS)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(solution.z)} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be >= 1; got 0"),
        ({"dilations": ()}, "dilations must have at least one entry; got none"),
        ({"dilations": (1, 0)}, "dilations must be >= 1; got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"embed_width": 7}, r"embed_width must be at most width \(6\), .* got 7"),
    ],
)
def test_refused_configurations(change, message):
    with pytest.raises(ValueError, match=f"jdeq.models.TrellisConfig: {message}"):
        dataclasses.replace(TINY, **change)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tokens must be integers .batch, length.; got float32"):
        DEQTrellisNet(TINY).init(jax.random.key(0), jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match="jdeq.models.trellis_net: layers must be >= 1; got 0"):
        trellis_net(TINY, layers=0)


@pytest.mark.parametrize("config", [TINY, CYCLE], ids=["tied", "cycle"])
def test_an_unknown_token_gives_nan_there_only(config):
    variables = variables_of(config)
    logits, sol = jax.jit(DEQTrellisNet(config).apply)(variables, TOKENS.at[0, 2].set(11))
    assert np.isnan(logits[0, 2]).all() and np.isfinite(np.delete(logits, 2, axis=1)).all()
    assert np.isfinite(sol.z["h"]).all()
