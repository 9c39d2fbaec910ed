"""One step on one device and on a mesh of eight: the same numbers, and who holds what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jdeq
from jdeq.data import Dataset
from jdeq.linen import DEQ
from jdeq.training import (
    Layout,
    adamw,
    cross_entropy_loss,
    make_eval_step,
    make_init,
    make_mesh,
    make_train_step,
    partition_spec,
)

WIDTH, CLASSES, BATCH = 512, 8, 16
RULES = {r"/up/kernel$": -1, r"/down/kernel$": -2}
MESHES = [
    dict(data=8),
    dict(data=4, fsdp=2),
    dict(data=2, fsdp=2, tensor=2),
    dict(data=1, fsdp=8),
]


class Cell(nn.Module):
    @nn.compact
    def __call__(self, z, x):
        kernel_init = nn.initializers.normal(0.02)
        h = nn.tanh(nn.Dense(WIDTH, kernel_init=kernel_init, name="up")(z) + x)
        return nn.Dense(WIDTH, kernel_init=kernel_init, name="down")(h)


class Model(nn.Module):
    """A cell of two matrices between two linear layers."""

    solver: object = jdeq.Anderson(depth=3)
    test_every: int = 1

    @nn.compact
    def __call__(self, inputs, *, train=False, probe=None):
        deq = DEQ(
            cell=Cell(parent=None),
            solver=self.solver,
            rtol=1e-4,
            max_steps=12,
            test_every=self.test_every,
            name="deq",
        )
        solution = deq(nn.Dense(WIDTH, name="embed")(inputs), probe=probe)
        return nn.Dense(CLASSES, name="classify")(solution.z), solution


def batch_at(position):
    rng = np.random.default_rng(position)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    inputs = rng.normal(size=(BATCH, 16)).astype(np.float32) + labels[:, None]
    return Dataset(inputs, labels)


OPTIMIZER = adamw(lambda step: 1e-3, weight_decay=1e-2, clip_norm=1.0)


def layout(**axes):
    return Layout(mesh=make_mesh(**axes), rules=RULES)


def initial_state(model, spread=None):
    init, args = make_init(model, OPTIMIZER), (jax.random.key(0), batch_at(0).inputs)
    if spread is None:
        return jax.jit(init)(*args)
    placement = spread.state(jax.eval_shape(init, *args))
    return jax.jit(init, out_shardings=placement)(*args)


def train(model, spread=None, steps=10, **options):
    """The losses and the last state."""
    step = make_train_step(cross_entropy_loss(model), OPTIMIZER, layout=spread, **options)
    state, losses = initial_state(model, spread), []
    for position in range(steps):
        batch = batch_at(position)
        batch = batch if spread is None else spread.put(batch, BATCH)
        state, metrics = step(state, batch, 0.1, penalize=position % 2 == 0)
        losses.append(float(metrics["loss_nats"]))
    return np.array(losses), state


@pytest.fixture(scope="module")
def alone():
    return train(Model())


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_every_mesh_trains_alike(alone, axes):
    losses, state = train(Model(), layout(**axes))
    # Sums of float32 in another order; Adam carries it on.
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (alone[1].params, state.params)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    assert int(state.step) == 10


def test_fsdp_splits_parameters_and_optimiser():
    spread = layout(data=1, fsdp=8)
    state = train(Model(), spread, steps=1)[1]
    held = jax.tree.leaves((state.params, state.opt_state))
    device = jax.devices()[0]
    here = sum(
        shard.data.nbytes for leaf in held for shard in leaf.addressable_shards
        if shard.device == device
    )  # fmt: skip
    assert here <= sum(leaf.nbytes for leaf in held) / 7
    # and the step keeps them where they were
    before = initial_state(Model(), spread)
    for one, two in zip(*map(jax.tree.leaves, (before, state)), strict=True):
        assert one.sharding.is_equivalent_to(two.sharding, one.ndim)


def test_local_stop_and_fixed_budget_train_alike(alone):
    spread = layout(data=4, fsdp=2)
    losses, _ = train(Model(), spread, local_stop=True, steps=3)
    # Its probes differ part by part, and with them the penalty's gradient.
    np.testing.assert_allclose(losses[0], alone[0][0], rtol=1e-5)
    np.testing.assert_allclose(losses, alone[0][:3], rtol=1e-2)
    losses, _ = train(Model(test_every=12), spread)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)


def test_local_stop_without_penalty_is_the_same_gradient():
    spread = layout(data=4, fsdp=2)

    def gradient(**options):
        loss = cross_entropy_loss(Model())
        plain = make_train_step(loss, optax.sgd(1.0), **options)
        init = make_init(Model(), optax.sgd(1.0))
        state = jax.jit(init)(jax.random.key(0), batch_at(0).inputs)
        before = jax.device_get(state.params)
        batch = Dataset(*batch_at(1))
        labels = batch.labels.copy()
        labels[:5] = -1  # parts of different counts
        batch = Dataset(batch.inputs, labels)
        if options:
            batch = spread.put(batch, BATCH)
        after, metrics = plain(state, batch, 0.0, penalize=False)
        moved = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
        return moved, {name: float(value) for name, value in metrics.items()}

    one, metrics = gradient()
    two, parts = gradient(layout=spread, local_stop=True)
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-4 * np.abs(a).max())
    for name in ("loss_nats", "accuracy", "nfe_forward", "nfe_backward", "count_converged"):
        np.testing.assert_allclose(metrics[name], parts[name], rtol=1e-5)


def test_local_stop_refuses_batch_statistics():
    class Normed(Model):
        @nn.compact
        def __call__(self, inputs, *, train=False, probe=None):
            x = nn.BatchNorm(use_running_average=not train)(inputs)
            return Model(name="rest")(x, train=train, probe=probe)

    with pytest.raises(ValueError, match="local_stop must be False for a model with batch"):
        train(Normed(), layout(data=8), steps=1, local_stop=True)
    with pytest.raises(ValueError, match="local_stop needs a layout; got None"):
        make_train_step(cross_entropy_loss(Model()), OPTIMIZER, local_stop=True)


def test_bfloat16_computes_in_it_and_keeps_float32(alone):
    losses, state = train(Model(), layout(data=8), compute_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, alone[0], rtol=0.05)
    assert not np.array_equal(losses, alone[0])


@pytest.mark.parametrize("segment", [None, 4])
def test_evaluation_is_the_same(segment):
    class Tokens(Model):
        @nn.compact
        def __call__(self, inputs, *, train=False, probe=None):
            x = nn.Embed(CLASSES, WIDTH, name="embed")(inputs)
            deq = DEQ(cell=Cell(parent=None), batch_ndim=1, name="deq")
            solution = deq(x, probe=probe)
            return nn.Dense(CLASSES, name="classify")(solution.z), solution

    tokens = np.random.default_rng(0).integers(0, CLASSES, (BATCH, 9)).astype(np.int32)
    batch = Dataset(tokens[:, :-1], tokens[:, 1:])
    model, spread = Tokens(), layout(data=2, fsdp=2, tensor=2)
    state = jax.jit(make_init(model, OPTIMIZER))(jax.random.key(0), batch.inputs)
    want = make_eval_step(model, segment=segment)(state.variables, batch)
    placed = jax.device_put(state, spread.state(state))
    for rows in (BATCH, 6):  # 6 do not divide: computed by every device
        part = Dataset(*(leaf[:rows] for leaf in batch))
        got = make_eval_step(model, segment=segment, layout=spread)(placed.variables, part)
        assert got.loss_nats.is_fully_replicated
        np.testing.assert_allclose(got.loss_nats, want.loss_nats[:rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(got.predicted, want.predicted[:rows])


def test_rules_say_what_is_split():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def spec(path, *shape):
        return tuple(partition_spec(path, shape, mesh, RULES))

    assert spec("deq/cell/up/kernel", 64, 32) == ("fsdp", "tensor")
    assert spec("deq/cell/down/kernel", 64, 32) == ("tensor", "fsdp")
    assert spec("embed/kernel", 16, 512) == (None, "fsdp")
    assert spec("embed/kernel", 2, 8) == ()  # small
    assert spec("deq/cell/up/kernel", 64, 33) == ("fsdp", None)  # 33 does not divide
    with pytest.raises(ValueError, match="rules must name an axis of deq/cell/down/kernel"):
        spec("deq/cell/down/kernel", 2048)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (dict(data=3), "data \\* fsdp \\* tensor must be the number of devices, 8"),
        (dict(data=-1, fsdp=-1), "at most one of data, fsdp, tensor may be -1"),
        (dict(data=-1, fsdp=3), "must be the number of devices, 8"),
        (dict(tensor=0), "tensor must be >= 1; got 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**axes)


def test_rows_must_divide():
    with pytest.raises(ValueError, match="batch_size must be a multiple of 8"):
        layout(data=4, fsdp=2).rows(12)
    assert layout(data=2, fsdp=2, tensor=2).rows(12) == slice(0, 12)


def test_a_memory_is_split_by_rows():
    state = initial_state(Model())
    memory = {"z": jnp.zeros((BATCH, 4, 8)), "filled": jnp.zeros(BATCH, jnp.int32)}
    state = state._replace(model_state={"memory": memory, "batch_stats": {"mean": jnp.zeros(8)}})
    placed = layout(data=4, fsdp=2).state(state)
    assert placed.model_state["memory"]["z"].spec == jax.P(("data", "fsdp"))
    assert placed.model_state["batch_stats"]["mean"].spec == jax.P()
