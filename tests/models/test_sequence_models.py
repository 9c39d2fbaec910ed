"""What the sequence models share: causality to the bit, memory, training, gradients everywhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.data import Dataset, Streams
from jdeq.models import (
    DecoderDEQConfig,
    DecoderDEQLM,
    DEQTransformerConfig,
    DEQTransformerLM,
    TransformerXL,
    TransformerXLConfig,
)
from jdeq.training import (
    adamw,
    cross_entropy_loss,
    evaluate,
    make_eval_step,
    make_init,
    make_train_step,
)

pytestmark = pytest.mark.compiles

VOCAB, LENGTH = 11, 6
PARTS = dict(vocab_size=VOCAB, width=8, heads=2, hidden=12, cutoffs=(4, 8), divisor=2)
POST = DEQTransformerConfig(**PARTS, memory=4)
PRE = dataclasses.replace(POST, pre_norm=True)
XL = TransformerXLConfig(**PARTS, memory=4, layers=2)
DECODER = DecoderDEQConfig(vocab_size=VOCAB, width=8, heads=2, hidden=12)
IMPLICIT = {
    "post-norm": DEQTransformerLM(POST),
    "pre-norm": DEQTransformerLM(PRE),
    "decoder": DecoderDEQLM(DECODER),
}
MODELS = IMPLICIT | {"explicit": TransformerXL(XL)}
WITH_MEMORY = ["post-norm", "pre-norm", "explicit"]
TOKENS = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, VOCAB)


@functools.cache
def variables_of(name):
    """Weights that every token makes itself felt through, and a memory that is half full."""
    variables = jax.jit(MODELS[name].init)(jax.random.key(1), TOKENS)
    params = jax.tree.map(
        lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape), variables["params"]
    )
    memory = jax.tree.map(
        lambda a: (
            jnp.full_like(a, 2) if a.ndim == 1 else jax.random.normal(jax.random.key(7), a.shape)
        ),
        variables.get("memory", {}),
    )
    return {"params": params} | ({"memory": memory} if memory else {})


def run(model):
    """``(variables, tokens) -> (outputs, solution), changed variables``, jitted."""
    return jax.jit(functools.partial(model.apply, mutable=["memory"]))


def assert_causal(model, variables):
    apply = run(model)
    (before, sol), _ = apply(variables, TOKENS)
    for t in (0, 3):
        tokens = TOKENS.at[:, t + 1 :].set((TOKENS[:, t + 1 :] + 3) % VOCAB)
        (after, other), _ = apply(variables, tokens)
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        np.testing.assert_array_equal(other.stats.nfe[:, : t + 1], sol.stats.nfe[:, : t + 1])
        assert np.all(np.abs(after[:, t + 1 :] - before[:, t + 1 :]).max(-1) > 0)
    assert sol.stats.nfe.shape == TOKENS.shape


@pytest.mark.parametrize("max_steps", [2, 7])
@pytest.mark.parametrize(
    "solver",
    [jdeq.Picard(), jdeq.Anderson(depth=3), jdeq.Broyden()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("name", IMPLICIT)
def test_no_output_sees_a_later_token(name, solver, max_steps):
    model = MODELS[name].clone(solver=solver, max_steps=max_steps)
    assert_causal(model, variables_of(name))


def test_no_output_of_the_explicit_model_sees_a_later_token():
    assert_causal(MODELS["explicit"], variables_of("explicit"))


@pytest.mark.filterwarnings("ignore:.*below the resolution")
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_segments_with_a_memory_are_one_long_context(name):
    """In float64 at convergence; a memory that is larger than what is needed is partly empty."""
    model = MODELS[name]
    model = model.clone(config=dataclasses.replace(model.config, memory=14))
    if name != "explicit":
        model = model.clone(rtol=1e-11, max_steps=300)
    tokens = jax.random.randint(jax.random.key(3), (2, 3 * LENGTH), 0, VOCAB)
    half = jax.tree.map(lambda a: np.asarray(a) / 2, variables_of(name)["params"])
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), half)
        long, solution = jax.jit(model.apply)({"params": params}, tokens)
        assert np.all(solution.stats.status == jdeq.Status.CONVERGED)
        variables, parts = {"params": params}, []
        apply = run(model)
        for segment in jnp.split(tokens, 3, axis=1):
            (log_probs, _), memory = apply(variables, segment)
            variables |= memory
            parts.append(log_probs)
        alone, _ = jax.jit(model.apply)({"params": params}, segment)
    assert np.abs(parts[2] - alone).max() > 1e-4
    assert parts[0].dtype == np.float64
    np.testing.assert_allclose(np.concatenate(parts, axis=1), long, atol=1e-8)
    np.testing.assert_array_equal(variables["memory"]["filled"], 14)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory_takes_part_only_where_it_is_mutable_and_zeros_are_none(name):
    model, variables = MODELS[name], dict(variables_of(name))
    if name != "explicit":  # converged: an empty memory and none are different programs
        variables["params"] = jax.tree.map(lambda a: a / 2, variables["params"])
        model = model.clone(rtol=1e-5, max_steps=100)
    apply = run(model)
    (used, _), after = apply(variables, TOKENS)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.shape, b.shape),
        after["memory"],
        variables["memory"],
    )
    np.testing.assert_array_equal(after["memory"]["filled"], 4)
    unused, _ = jax.jit(model.apply)(variables, TOKENS)
    empty = variables | {"memory": jax.tree.map(jnp.zeros_like, variables["memory"])}
    (fresh, _), _ = apply(empty, TOKENS)
    np.testing.assert_allclose(fresh, unused, atol=1e-3)
    assert np.abs(used - unused).max() > 1e-2
    one = {**variables["memory"], "filled": jnp.array([0, 2])}
    (row, _), _ = apply(variables | {"memory": one}, TOKENS)
    np.testing.assert_array_equal(row[0], fresh[0])
    np.testing.assert_array_equal(row[1], used[1])


def test_a_memory_of_another_batch_is_refused():
    model, variables = MODELS["post-norm"], variables_of("post-norm")
    with pytest.raises(ValueError, match=r"memory 'z' must have the shape \(1, 4, 8\); got"):
        jax.eval_shape(run(model), variables, TOKENS[:1])
    assert model.apply(variables, TOKENS[:1])[0].shape == (1, LENGTH, VOCAB)


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss_and_carries_the_memory(name):
    """20 steps on a text of period 7, from a fresh start; dropout where the model has it."""
    model = MODELS[name]
    if name in WITH_MEMORY:
        model = model.clone(
            config=dataclasses.replace(model.config, dropout=0.05, attention_dropout=0.05)
        )
    text = np.tile(np.array([3, 1, 4, 1, 5, 9, 2], np.int32), 60)
    batches = Streams(tokens=text, length=LENGTH, batch_size=3)
    optimizer = adamw(lambda step: 2e-2, weight_decay=0.0, clip_norm=1.0)
    state = jax.jit(make_init(model, optimizer))(jax.random.key(4), batches(0).inputs)
    step = make_train_step(cross_entropy_loss(model), optimizer)
    losses, filled = [], []
    for i in range(20):
        if name in WITH_MEMORY:
            filled.append(int(state.model_state["memory"]["filled"][0]))
        state, metrics = step(state, batches(i), 0.0, penalize=False)
        losses.append(float(metrics["loss_nats"]))
    assert filled[:3] in ([], [0, 4, 4])
    assert np.isfinite(losses).all() and int(state.skipped) == 0
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    if name == "explicit":
        assert metrics["nfe_forward"] == 2 and metrics["count_converged"] == TOKENS.size * 3 / 2


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    model, variables = MODELS[name], variables_of(name)
    tokens = jnp.arange(2 * VOCAB).reshape(2, VOCAB) % VOCAB  # every one of the vocabulary

    def loss(params):
        log_probs, _ = model.apply({"params": params}, tokens)
        return jnp.sum(jnp.sin(jnp.arange(log_probs.size)).reshape(log_probs.shape) * log_probs)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computation(name):
    model = MODELS[name].clone(dtype=jnp.bfloat16)
    if name != "explicit":
        model = model.clone(rtol=1e-2)
    logits, sol = jax.jit(model.apply)({"params": variables_of(name)["params"]}, TOKENS)
    assert logits.dtype == jnp.float32 and sol.z.dtype == jnp.bfloat16
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", MODELS)
def test_tokens_that_do_not_fit_are_refused(name):
    model = MODELS[name]
    for wrong in (jnp.zeros((2, 8)), jnp.zeros(8, jnp.int32)):
        with pytest.raises(ValueError, match=r"tokens must be integers \[batch, length\]; got"):
            jax.eval_shape(model.init, jax.random.key(0), wrong)


@pytest.mark.parametrize("bad", [-1, VOCAB])
@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_token_gives_nan_there_and_nothing_before(name, bad):
    variables, apply = variables_of(name), run(MODELS[name])
    (before, _), _ = apply(variables, TOKENS)
    (after, _), memory = apply(variables, TOKENS.at[0, 3].set(bad))
    assert np.isnan(after[0, 3]).all() and np.isfinite(np.delete(after, 3, axis=1)).all()
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    np.testing.assert_array_equal(after[1], before[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(memory))


@pytest.mark.parametrize("name", ["post-norm", "explicit", "decoder"])
def test_evaluation_by_segments_hands_the_memory_on(name):
    """As a loop over the segments, from an empty memory and not from the one given."""
    model, variables = MODELS[name], variables_of(name)
    inputs = jax.random.randint(jax.random.key(5), (2, 3 * LENGTH), 0, VOCAB)
    batch = Dataset(inputs, jnp.roll(inputs, -1, axis=1))
    got = make_eval_step(model, segment=LENGTH)(variables, batch)
    known, losses, nfe = {"params": variables["params"]}, [], []
    for part, labels in zip(*(jnp.split(leaf, 3, axis=1) for leaf in batch), strict=True):
        (log_probs, sol), memory = run(model)(known, part)
        known |= memory
        log_probs = jax.nn.log_softmax(log_probs)
        losses.append(-jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0])
        nfe.append(sol.stats.nfe)
    np.testing.assert_allclose(got.loss_nats, np.concatenate(losses, axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.nfe, np.concatenate(nfe, axis=1))
    alone = make_eval_step(model)(variables, Dataset(*(leaf[:, -LENGTH:] for leaf in batch)))
    same = np.allclose(alone.loss_nats, got.loss_nats[:, -LENGTH:], rtol=1e-4, atol=1e-5)
    assert same == (name == "decoder")
    with pytest.raises(ValueError, match=r"segment must divide the length .* \(18\); got 4"):
        make_eval_step(model, segment=4)(variables, batch)


def test_solves_counted_by_sequence_are_counted_by_segment():
    model = MODELS["decoder"].clone(causal=False)
    inputs = jnp.zeros((2, 3 * LENGTH), jnp.int32)
    step = make_eval_step(model, segment=LENGTH)
    assert step(variables_of("decoder"), Dataset(inputs, inputs)).nfe.shape == (2, 3)


@pytest.mark.parametrize("name", [pytest.param("post-norm", marks=pytest.mark.slow), "explicit"])
def test_losses_by_labels_train_and_evaluate_as_logits_do(name):
    model, variables = MODELS[name], variables_of(name)
    batch = Dataset(TOKENS, jnp.roll(TOKENS, -1, axis=1).at[0, -1].set(-1))
    args = dict(key=jax.random.key(6), probe=jdeq.backward_probe(), penalize=False)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, by_labels):
        loss = cross_entropy_loss(model, by_labels=by_labels, probe_backward=name != "explicit")
        state = {"memory": variables["memory"]}

        def objective(params):
            out = loss(params, state, batch, **args)
            return out.loss_nats, out

        return jax.value_and_grad(objective, has_aux=True)(params)

    (want, out), grads = gradient(variables["params"], False)
    (got, by_labels), same = gradient(variables["params"], True)
    assert out.accuracy is not None and by_labels.accuracy is None
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), same, grads)
    for segment in (None, 3):
        logits = make_eval_step(model, segment=segment)(variables, batch)
        losses = make_eval_step(model, segment=segment, by_labels=True)(variables, batch)
        np.testing.assert_allclose(losses.loss_nats, logits.loss_nats, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(losses.counted, batch.labels >= 0)
        assert losses.correct is None and losses.predicted is None
    means = evaluate(make_eval_step(model, by_labels=True), variables, batch, batch_size=2)
    assert "accuracy" not in means and means["loss_nats"] > 0
