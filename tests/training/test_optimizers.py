"""One-cycle schedule, averaged parameters, masks of the weight decay, accumulated gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.config import ConfigError, OptimizerConfig
from jdeq.data import Dataset
from jdeq.training import (
    Checkpoints,
    LossOutput,
    abstract_state,
    adamw,
    average_parameters,
    averaged_params,
    cross_entropy_loss,
    make_init,
    make_train_step,
    one_cycle,
    sgd,
)
from jdeq.types import SolverStats
from tests.training.problem import MODEL, toy_data

PARAMS = {
    "embed": {"table": jnp.ones((2, 3))},
    "out": {"kernel": jnp.ones((3, 2)), "b": jnp.ones(2)},
}


def test_one_cycle():
    schedule = one_cycle(peak=2.0, warmup_steps=50, total_steps=70)
    found = [float(schedule(step)) for step in (0, 25, 50, 60, 70, 80)]
    np.testing.assert_allclose(found, [0.08, 1.04, 2.0, 1.0, 8e-6, 8e-6], rtol=1e-5)
    assert max(range(71), key=lambda step: float(schedule(step))) == 50
    for warmup in (0, 70):
        with pytest.raises(ValueError, match=rf"warmup_steps must be in 1\.\..*= 69; got {warmup}"):
            one_cycle(peak=1.0, warmup_steps=warmup, total_steps=70)
    with pytest.raises(ValueError, match="one_cycle: peak must be > 0 and finite; got -1"):
        one_cycle(peak=-1, warmup_steps=1, total_steps=2)


def drift(optimizer, gradients, params):
    """The parameters and the averages after each update."""
    state, rows = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update({"w": jnp.full(2, gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        rows.append((params["w"][0], averaged_params(state)["w"][0]))
    return np.array(rows), state


@pytest.mark.parametrize(("decay", "every"), [(0.5, 1), (0.999, 1), (0.9, 3)])
def test_the_average_is_that_of_a_loop_in_numpy(decay, every):
    """In float64, with the sum and its weight kept apart."""
    gradients = np.random.default_rng(0).normal(size=24)
    inner = optax.MultiSteps(optax.sgd(0.1), every).gradient_transformation()
    optimizer = optax.chain(inner, average_parameters(decay, every=every))
    rows, _ = drift(optimizer, gradients, {"w": jnp.full(2, 3.0)})
    p, total, weight = 3.0, 0.0, 0.0
    for n, (param, average) in enumerate(rows, 1):
        if n % every == 0:
            p -= 0.1 * gradients[n - every : n].mean()
            total, weight = decay * total + (1 - decay) * p, decay * weight + 1 - decay
        assert param == pytest.approx(p, abs=1e-6)
        assert average == pytest.approx(total / weight if weight else 3.0, abs=2e-6)


def test_what_an_average_cannot_be():
    for options, message in (
        ({"decay": 1.0}, r"decay must lie in \(0, 1\); got 1.0"),
        ({"decay": 0.5, "every": 0}, "every must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=f"jdeq.training.average_parameters: {message}"):
            average_parameters(**options)
    average = average_parameters(0.5)
    with pytest.raises(ValueError, match="params must be given to update; got None"):
        average.update(PARAMS, average.init(PARAMS))
    assert averaged_params(optax.adam(1e-3).init(PARAMS)) is None


def test_the_average_trains_is_saved_and_is_kept_by_a_skipped_step(tmp_path):
    optimizer = optax.chain(adamw(lambda step: 1e-2), average_parameters(0.9))
    step = make_train_step(cross_entropy_loss(MODEL), optimizer)
    init, data = make_init(MODEL, optimizer), toy_data(8)
    for state in (
        init(jax.random.key(0), data.inputs),
        jax.jit(init)(jax.random.key(0), data.inputs),
    ):
        for _ in range(3):
            state, _ = step(state, data, 0.0, penalize=False)  # donates the state
    assert set(state.averaged_variables) == {"params", "batch_stats"}
    before = jax.device_get(state.averaged_variables["params"])
    bad = Dataset(np.full_like(data.inputs, np.nan), data.labels)
    state, metrics = step(state, bad, 0.0, penalize=False)
    assert metrics["count_skipped"] == 1
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    restored = checkpoints.restore(abstract_state(init, jax.random.key(0), data.inputs)).state
    checkpoints.close()
    for now in (state, restored):
        jax.tree.map(np.testing.assert_array_equal, before, now.averaged_variables["params"])
    kernel = state.params["Dense_0"]["kernel"]
    assert np.abs(kernel - before["Dense_0"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("make", [adamw, sgd])
def test_no_decay_leaves_out_what_it_names(make):
    optimizer = make(lambda step: 0.1, weight_decay=0.5, no_decay=("^embed/", "b$"))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda update: bool(jnp.all(update != 0)), updates)
    assert moved == {"embed": {"table": False}, "out": {"kernel": True, "b": False}}
    optimizer = make(lambda step: 0.1, weight_decay=0.5, no_decay=("table", "tabel"))
    with pytest.raises(ValueError, match="no_decay must be found in .*; got 'tabel'.*embed/table"):
        optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"no_decay must be regular expressions; got \('\(',\)"):
        make(lambda step: 0.1, no_decay=("(",))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return inputs @ self.param("w", nn.initializers.normal(1.0), (5,))


def quadratic(params, model_state, batch, *, key, probe, penalize):
    """Mean squared error of a linear model: no batch statistics, no dropout."""
    losses = jnp.square(batch.inputs @ params["w"] - batch.labels)
    zeros = jnp.zeros(len(losses))
    stats = SolverStats(zeros.astype(jnp.int32), zeros, zeros.astype(jnp.int32))
    count = jnp.int32(len(losses))
    return LossOutput(losses.mean(), probe.sum(), None, count, stats, model_state)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
        {"kind": "sgd", "schedule": "one_cycle", "ema": 0.9},
        {
            "schedule": "plateau",
            "plateau_factor": 0.5,
            "plateau_patience": 1,
            "plateau_steps": 2,
            "ema": 0.5,
        },
    ],
)
def test_accumulated_batches_are_one_large_batch(options):
    """Parameters, average, rate and scale after 6 updates, of 3 batches of 4 and of one of 12."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(72, 5)).astype(np.float32)
    data = Dataset(inputs, rng.normal(size=72).astype(np.float32))

    def trained(batch, accumulate):
        config = OptimizerConfig(
            learning_rate=0.1, warmup_steps=2, accumulate=accumulate, **options
        )
        steps = 72 // batch
        rate, optimizer = config.build(total_steps=steps)
        step = make_train_step(quadratic, optimizer)
        init = make_init(Linear(), optimizer)
        state, rates = init(jax.random.key(0), data.inputs[:1]), []
        for n in range(steps):
            rates.append(float(rate(n)))
            part = Dataset(*(leaf[n * batch : (n + 1) * batch] for leaf in data))
            state, metrics = step(state, part, 0.0, penalize=False)
        return state, rates, metrics

    small, rates, metrics = trained(4, 3)
    large, wanted, reference = trained(12, 1)
    np.testing.assert_allclose(rates, np.repeat(wanted, 3))
    assert metrics["learning_rate_scale"] == reference["learning_rate_scale"]
    # float32 sums in another order
    np.testing.assert_allclose(small.params["w"], large.params["w"], rtol=1e-4, atol=1e-6)
    for one, two in zip(
        *(jax.tree.leaves(s.averaged_variables) for s in (small, large)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_options_that_cannot_be():
    for options, message in (
        ({"accumulate": 3}, r"accumulate must be >= 1 and divide .* \(20\); got 3"),
        ({"accumulate": 0}, "accumulate must be >= 1 .*; got 0"),
        ({"no_decay": ("b",)}, r"no_decay must be empty without weight decay; got \('b',\)"),
        ({"ema": 0.0}, r"decay must lie in \(0, 1\); got 0.0"),
        ({"schedule": "one_cycle", "warmup_steps": 0}, r"warmup_steps must be in 1\.\."),
    ):
        with pytest.raises(ConfigError, match=f"optimizer.*{message}"):
            OptimizerConfig(**{"warmup_steps": 5, **options}).build(total_steps=20)
