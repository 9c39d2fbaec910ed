"""Generation: as the whole text at once, draws of the stated distribution, stops, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.models import (
    LSTM,
    DecoderDEQConfig,
    DecoderDEQLM,
    DEQTransformerConfig,
    DEQTransformerLM,
    DEQTrellisNet,
    LSTMConfig,
    RevDEQLM,
    RevDEQLMConfig,
    Sampling,
    TransformerXL,
    TransformerXLConfig,
    TrellisConfig,
    generate,
)

VOCAB, STEPS = 11, 8
SOLVE = dict(solver=jdeq.Anderson(), gradient=jdeq.Implicit(), rtol=1e-6, max_steps=200)
PARTS = dict(vocab_size=VOCAB, width=8, heads=2, hidden=12, cutoffs=(4, 8), divisor=2, memory=3)
MODELS = {
    "post-norm": DEQTransformerLM(DEQTransformerConfig(**PARTS), **SOLVE),
    "pre-norm": DEQTransformerLM(DEQTransformerConfig(**PARTS, pre_norm=True), **SOLVE),
    "explicit": TransformerXL(TransformerXLConfig(**PARTS, layers=2)),
    "decoder": DecoderDEQLM(
        DecoderDEQConfig(vocab_size=VOCAB, width=8, heads=2, hidden=12), **SOLVE
    ),
    "trellis": DEQTrellisNet(
        TrellisConfig(vocab_size=VOCAB, width=8, embed_width=5, dilations=(1, 3)), **SOLVE
    ),
    "lstm": LSTM(LSTMConfig(vocab_size=VOCAB, hidden=8, embed_width=5)),
}
WHOLE = MODELS["decoder"].clone(causal=False)
STEPPED = RevDEQLM(RevDEQLMConfig(vocab_size=VOCAB, length=12, width=8, heads=2))
OTHERS = {"stepped": STEPPED, "whole": WHOLE}
PROMPT = jax.random.randint(jax.random.key(0), (2, 5), 0, VOCAB)


@functools.cache
def variables_of(name):
    model = OTHERS.get(name) or MODELS[name]
    params = jax.jit(model.init)(jax.random.key(1), PROMPT)["params"]
    return {
        "params": jax.tree.map(
            lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), params
        )
    }


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_model_on_the_whole_text(name):
    model, variables = MODELS[name], variables_of(name)
    key = jax.random.key(3)
    out = jax.jit(lambda v: generate(model, v, PROMPT, key, steps=STEPS))(variables)
    assert out.tokens.shape == out.log_probs.shape == out.nfe.shape == (2, STEPS)
    text = jnp.concatenate([PROMPT, out.tokens], axis=1)[:, :-1]
    logits, sol = jax.jit(model.apply)(variables, text)
    assert np.all(sol.stats.status == jdeq.Status.CONVERGED)
    log_probs = jax.nn.log_softmax(logits[:, PROMPT.shape[1] - 1 :])
    want = jnp.take_along_axis(log_probs, out.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.log_probs, want, atol=1e-4)
    assert np.ptp(log_probs, axis=-1).min() > 0.05  # and not the uniform distribution
    assert np.all(out.status == jdeq.Status.CONVERGED) and np.all(out.nfe > 0)


def test_a_model_without_a_cache_reads_the_whole_text_again():
    """Its steps lead to no equilibrium: after so many of them, to the bit, and causal as ever."""
    variables = variables_of("stepped")
    options = {"prompt": PROMPT, "key": jax.random.key(3), "steps": STEPS, "cached": False}
    out = jax.jit(lambda v: generate(STEPPED, v, **options))(variables)
    text = jnp.concatenate([PROMPT, out.tokens], axis=1)[:, :-1]
    logits, _ = jax.jit(STEPPED.apply)(variables, text)
    log_probs = jax.nn.log_softmax(logits[:, PROMPT.shape[1] - 1 :])
    want = jnp.take_along_axis(log_probs, out.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.log_probs, want, atol=1e-5)
    with pytest.raises(ValueError, match="RevDEQLM does not; pass cached=False"):
        jax.eval_shape(lambda: generate(STEPPED, variables, **(options | {"cached": True})))


def test_the_memory_of_training_is_left_aside():
    model, variables = MODELS["post-norm"], variables_of("post-norm")
    run = jax.jit(lambda v: generate(model, v, PROMPT, jax.random.key(3), steps=2).log_probs)
    _, memory = model.apply(variables, PROMPT[:1], mutable=["memory"])
    np.testing.assert_array_equal(run(variables | memory), run(variables))


def test_a_key_gives_one_text_and_a_stop_token_ends_it():
    model, variables = MODELS["lstm"], variables_of("lstm")
    run = jax.jit(
        lambda key, stop: generate(model, variables, PROMPT, key, steps=20, stop_token=stop),
        static_argnums=1,
    )
    free = run(jax.random.key(5), None)
    np.testing.assert_array_equal(run(jax.random.key(5), None).tokens, free.tokens)
    assert not np.array_equal(run(jax.random.key(6), None).tokens, free.tokens)
    stop = int(free.tokens[0, 6])
    first = int(np.argmax(np.asarray(free.tokens[0]) == stop))
    stopped = run(jax.random.key(5), stop)
    np.testing.assert_array_equal(stopped.tokens[0, : first + 1], free.tokens[0, : first + 1])
    np.testing.assert_array_equal(stopped.tokens[0, first:], stop)
    assert np.all(stopped.log_probs[0, : first + 1] < 0)
    np.testing.assert_array_equal(stopped.log_probs[0, first + 1 :], 0.0)
    np.testing.assert_array_equal(stopped.nfe[0, first + 1 :], 0)


PROBABILITIES = np.array([0.4, 0.05, 0.3, 0.05, 0.2])


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(temperature=0.0), np.array([1.0, 0, 0, 0, 0])),
        (Sampling(top_k=2), np.array([4, 0, 3, 0, 0]) / 7),
        (Sampling(top_k=9), PROBABILITIES),
        (Sampling(top_p=0.75), np.array([4, 0, 3, 0, 2]) / 9),
        (Sampling(top_p=0.1), np.array([1.0, 0, 0, 0, 0])),
        (Sampling(top_k=3, top_p=0.44), np.array([1.0, 0, 0, 0, 0])),  # 0.4 / 0.9 reach it
        (Sampling(temperature=1e-40), np.array([1.0, 0, 0, 0, 0])),
    ],
    ids=repr,
)
def test_draws_follow_the_stated_distribution(sampling, want):
    draws = 20_000
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES) + 3.0, (draws, 5))
    tokens = sampling.draw(jax.random.key(7), jax.nn.log_softmax(logits))
    share = np.bincount(np.asarray(tokens), minlength=5) / draws
    # Four standard errors of a share.
    np.testing.assert_allclose(share, want, atol=4 * np.sqrt(0.25 / draws))
    np.testing.assert_array_equal(share > 0, want > 0)


def test_of_equal_tokens_so_many_are_drawn_from():
    tokens = Sampling(top_k=2).draw(jax.random.key(8), jnp.zeros((200, 5)))
    np.testing.assert_array_equal(np.unique(tokens), [0, 1])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("at", [0, 4])
def test_after_an_unknown_token_nothing_is_known(at, cached):
    """All log-probabilities of its row are NaN; the other row is as without it."""
    variables = variables_of("lstm")  # not inside: what is kept would be a tracer
    run = jax.jit(
        lambda prompt: generate(
            MODELS["lstm"], variables, prompt, jax.random.key(3), steps=3, cached=cached
        )
    )
    plain, bad = run(PROMPT), run(PROMPT.at[0, at].set(VOCAB))
    assert np.isnan(bad.log_probs[0]).all()
    np.testing.assert_array_equal(bad.tokens[1], plain.tokens[1])
    np.testing.assert_array_equal(bad.log_probs[1], plain.log_probs[1])


def test_what_is_not_written_yet_is_not_counted():
    """The evaluations of the prompt do not depend on how much is to be written."""
    model, variables = MODELS["trellis"], variables_of("trellis")

    def first(steps, cached):
        out = generate(model, variables, PROMPT, jax.random.key(0), steps=steps, cached=cached)
        return out.nfe[:, 0]

    np.testing.assert_array_equal(first(9, False), first(1, False))
    np.testing.assert_array_equal(first(2, True), first(1, False))


def test_a_solve_that_does_not_converge_says_so():
    model = MODELS["post-norm"].clone(max_steps=2)
    out = generate(model, variables_of("post-norm"), PROMPT, jax.random.key(0), steps=2)
    np.testing.assert_array_equal(out.status, jdeq.Status.MAX_STEPS)


def test_bytes_are_a_prompt():
    def tokens(prompt, cached):
        return generate(
            MODELS["lstm"], variables_of("lstm"), prompt, jax.random.key(0), steps=3, cached=cached
        ).tokens

    for cached in (True, False):
        want = tokens(PROMPT, cached)
        np.testing.assert_array_equal(tokens(np.asarray(PROMPT, np.uint8), cached), want)
        np.testing.assert_array_equal(tokens(np.asarray(PROMPT).tolist(), cached), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be finite, >= 0; got -0.1"),
        ({"top_k": 0}, r"top_k must be >= 1; got 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]; got 0.0"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]; got 1.5"),
    ],
)
def test_sampling_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"jdeq.models.Sampling: {message}"):
        Sampling(**options)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lstm", {"steps": 0}, "jdeq.models.generate: steps must be >= 1; got 0"),
        ("lstm", {"prompt": PROMPT[:, :0]}, r"prompt must be integers \[batch, length\].*\(2, 0\)"),
        ("lstm", {"prompt": PROMPT[0]}, r"prompt must be integers .* int32 of shape \(5,\)"),
        ("lstm", {"prompt": PROMPT * 1.0}, r"prompt must be integers .* float32 of shape"),
        ("lstm", {"stop_token": VOCAB}, "stop_token must be below the model's 11 tokens; got 11"),
        ("lstm", {"stop_token": -5}, "stop_token must be >= 0; got -5"),
        ("whole", {"cached": False}, "cached=False needs a model that solves causally"),
        (
            "stepped",
            {"steps": 9, "cached": False},
            "tokens must have at most config.length=12 a row; got 13",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused(name, change, message):
    options = {"prompt": PROMPT, "key": jax.random.key(0), "steps": 3} | change
    with pytest.raises(ValueError, match=message):
        model = OTHERS.get(name) or MODELS[name]
        jax.eval_shape(lambda: generate(model, variables_of(name), **options))
