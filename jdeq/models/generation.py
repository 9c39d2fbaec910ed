"""Text from a sequence model, a token at a time.

A model that can keeps what later tokens need of the earlier ones in its collection "cache": keys
and values at their equilibria, the state of a recurrence. A new token then solves for its own state
only, which is right because no state depends on a later token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jdeq.types import Solution, require_integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from log-probabilities: ``temperature``, ``top_k``, ``top_p`` are
    applied in this order.

    Args:
      temperature: divides the log-probabilities, >= 0; 0 takes the most probable token.
      top_k: only the so many most probable tokens, >= 1; None: all.
      top_p: only the most probable tokens that together reach this probability, in (0, 1]: the
        nucleus.
    Raises:
      ValueError: when built, for a value outside these ranges.
    Source: Fan, Lewis, Dauphin (2018), Hierarchical Neural Story Generation (top k); Holtzman et
      al. (2020), The Curious Case of Neural Text Degeneration (nucleus).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        name = "jdeq.models.Sampling"
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"{name}: temperature must be finite, >= 0; got {self.temperature}")
        if self.top_k is not None:
            require_integer(name, "top_k", self.top_k, 1)
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"{name}: top_p must lie in (0, 1]; got {self.top_p}")

    def draw(
        self, key: Key[Array, ""], logits: Float[Array, "batch vocab"]
    ) -> Int[Array, " batch"]:
        """One token for each row."""
        if self.temperature == 0.0:
            return logits.argmax(-1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        if self.top_p < 1.0:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
            # A token is in as long as those before it fall short of top_p: the first one always.
            count = jnp.sum(before < self.top_p, axis=-1, keepdims=True)
            least = jnp.take_along_axis(ordered, count - 1, axis=-1)
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return jax.random.categorical(key, logits).astype(jnp.int32)


class Whole(NamedTuple):
    """The text so far, for a model that reads it all again for each token."""

    text: Int[Array, "batch capacity"]  # 0 where there is none yet, which no earlier position sees
    length: Int[Array, ""]


class Decoding(NamedTuple):
    """Between two tokens."""

    read: dict[str, Any] | Whole  # the collection "cache"
    token: Int[Array, " batch"]  # the newest, not read yet
    log_prob: Float[Array, " batch"]  # in nats, under the model itself (temperature 1, all tokens)
    nfe: Int[Array, " batch"]  # evaluations that the solve before it took
    done: Bool[Array, " batch"]  # whether it, or one before it, is the stop token
    key: Key[Array, ""]


class Generated(NamedTuple):
    """What `generate` returns."""

    tokens: Int[Array, "batch steps"]  # after the stop token: that token
    log_probs: Float[Array, "batch steps"]  # in nats, under the model itself; 0 after the stop
    nfe: Int[Array, "batch steps"]  # evaluations of the solves; the first is the prompt's largest


def start(
    model: nn.Module,
    variables: dict[str, Any],
    prompt: Int[Array, "batch length"],
    key: Key[Array, ""],
    *,
    steps: int,
    sampling: Sampling,
    stop_token: int | None = None,
    cached: bool = True,
) -> Decoding:
    """Read the prompt, draw the first token. Pure; see `generate` for the arguments."""
    name = "jdeq.models.generate"
    require_integer(name, "steps", steps, 1)
    if jnp.ndim(prompt) != 2 or 0 in jnp.shape(prompt):
        raise ValueError(
            f"{name}: prompt must be integers [batch, length], neither of them 0; got shape "
            f"{jnp.shape(prompt)}"
        )
    batch, length = prompt.shape
    if cached:
        (logits, solution), read = _read(model, variables, prompt)
        if not read:
            raise ValueError(
                f"{name}: cached needs a model that keeps what it has read in the collection "
                f"'cache', and {type(model).__name__} does not; pass cached=False"
            )
        # Room for all that will be read; what is kept by position is kept at the end.
        text = jax.ShapeDtypeStruct((batch, length + steps - 1), prompt.dtype)
        room = jax.eval_shape(lambda text: _read(model, variables, text)[1], text)
        read = jax.tree.map(_padded, read, room)
    else:
        read = Whole(jnp.pad(prompt, ((0, 0), (0, steps - 1))), jnp.int32(length))
        logits, solution = _reread(model, variables, read)
    before = Decoding(
        read=read,
        token=jnp.zeros(batch, jnp.int32),
        log_prob=jnp.zeros(batch, logits.dtype),
        nfe=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        key=key,
    )
    return _drawn(before, read, logits, solution, sampling, stop_token)


def advance(
    model: nn.Module,
    variables: dict[str, Any],
    state: Decoding,
    *,
    sampling: Sampling,
    stop_token: int | None = None,
) -> Decoding:
    """Read the newest token, draw the one after it. Pure; see `generate`."""
    if isinstance(state.read, Whole):
        text, length = state.read
        text = jax.lax.dynamic_update_index_in_dim(text, state.token, length, axis=1)
        read = Whole(text, length + 1)
        logits, solution = _reread(model, variables, read)
    else:
        (logits, solution), read = _read(model, variables, state.token[:, None], state.read)
    return _drawn(state, read, logits, solution, sampling, stop_token)


def generate(
    model: nn.Module,
    variables: dict[str, Any],
    prompt: Int[Array, "batch length"],
    key: Key[Array, ""],
    *,
    steps: int,
    sampling: Sampling | None = None,
    stop_token: int | None = None,
    cached: bool = True,
) -> Generated:
    """``steps`` tokens after each prompt, each solved for by itself against the cache.

    To within the tolerance of the solves the log-probabilities are those of the model called on the
    whole text at once, if its solves converge: the positions before are at their equilibria here,
    while there they are on their way.

    Args:
      model: called as ``model(tokens) -> (logits, solution)``, and keeping what it has read in its
        collection "cache", as the language models of `jdeq.models` do but RevDEQLM, whose steps
        lead to no equilibrium. It reads prompt and text as one segment, without the memory of a
        training run.
      variables: its parameters; the collections "memory" and "cache" are left aside.
      prompt: ids, all rows of one length, >= 1.
      key: of the draws; the same key gives the same text.
      steps: tokens to generate, >= 1.
      sampling: how; None: ``Sampling()``, from the model's own distribution.
      stop_token: id after which a row is done; None: no row ends early.
      cached: False calls the model on the whole text for each token, for a model without a cache.
    Returns:
      the tokens, their log-probabilities, and the evaluations that each took.
    Raises:
      ValueError: for a prompt or number out of range, a model without a cache, or a text longer
        than the model can read.
    Cost: one solve of the prompt, and one solve of a single position a token, where a solve of all
      takes its place unless ``cached``. The cache holds ``length + steps - 1`` positions.
    """
    options: Any = {"sampling": sampling or Sampling(), "stop_token": stop_token}
    first = start(model, variables, prompt, key, steps=steps, cached=cached, **options)

    def step(state: Decoding, _):
        # The rows that are done go along: a batch is one program.
        new = advance(model, variables, state, **options)
        return new, (new.token, new.log_prob, new.nfe)

    _, rest = jax.lax.scan(step, first, None, length=steps - 1)
    whole = zip((first.token, first.log_prob, first.nfe), rest, strict=True)
    return Generated(*(jnp.concatenate([a[:, None], b.T], axis=1) for a, b in whole))


def _read(
    model: nn.Module, variables: dict[str, Any], tokens: Array, cache: dict[str, Any] | None = None
) -> tuple[tuple[Array, Solution], dict[str, Any]]:
    """``(logits of the token after the last, solution), cache`` once these have been read too."""
    known = _without_state(variables) | ({} if cache is None else {"cache": cache})
    outputs: Any = model.apply(known, tokens, mutable=["cache"])
    (logits, solution), kept = outputs
    return (logits[:, -1], solution), kept.get("cache", {})


def _reread(model: nn.Module, variables: dict[str, Any], whole: Whole) -> tuple[Array, Solution]:
    outputs: Any = model.apply(_without_state(variables), whole.text)
    logits, solution = outputs
    last = jax.lax.dynamic_index_in_dim(logits, whole.length - 1, axis=1, keepdims=False)
    return last, solution


def _without_state(variables: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in variables.items() if name not in ("memory", "cache")}


def _padded(a: Array, room: jax.ShapeDtypeStruct) -> Array:
    return jnp.pad(a, [(wide - size, 0) for size, wide in zip(a.shape, room.shape, strict=True)])


def _drawn(
    before: Decoding,
    read: dict[str, Any] | Whole,
    logits: Float[Array, "batch vocab"],
    solution: Solution,
    sampling: Sampling,
    stop_token: int | None,
) -> Decoding:
    key, used = jax.random.split(before.key)
    log_probs = jax.nn.log_softmax(logits)
    token = sampling.draw(used, log_probs)
    if stop_token is not None:
        token = jnp.where(before.done, stop_token, token)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    nfe = solution.stats.nfe.reshape(len(token), -1).max(axis=1)
    return Decoding(
        read=read,
        token=token,
        log_prob=jnp.where(before.done, 0.0, log_prob),
        nfe=jnp.where(before.done, 0, nfe),
        done=before.done if stop_token is None else before.done | (token == stop_token),
        key=key,
    )
