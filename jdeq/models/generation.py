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

from jdeq.types import Solution, Status, require_integer


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
        """One token for each row; of equally probable ones the first come first."""
        if self.temperature == 0.0:
            return logits.argmax(-1).astype(jnp.int32)
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        ordered = jnp.take_along_axis(logits, order, axis=-1)
        # From the largest on: a tiny temperature then leaves it, and sends the others to -inf.
        ordered = (ordered - ordered[:, :1]) / self.temperature
        if self.top_k is not None:
            ordered = jnp.where(jnp.arange(ordered.shape[-1]) < self.top_k, ordered, -jnp.inf)
        if self.top_p < 1.0:
            probabilities = jax.nn.softmax(ordered)
            # A token is in as long as those before it fall short of top_p: the first one always.
            before = jnp.cumsum(probabilities, axis=-1) - probabilities
            ordered = jnp.where(before < self.top_p, ordered, -jnp.inf)
        drawn = jax.random.categorical(key, ordered)
        return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


class Whole(NamedTuple):
    """The text so far, for a model that reads it all again for each token."""

    text: Int[Array, "batch capacity"]  # 0 where there is none yet: no earlier position sees that
    length: Int[Array, ""]


class Decoding(NamedTuple):
    """Between two tokens."""

    read: dict[str, Any] | Whole  # the collection "cache"
    token: Int[Array, " batch"]  # the newest, not read yet
    log_prob: Float[Array, " batch"]  # in nats, under the model itself (temperature 1, all tokens)
    nfe: Int[Array, " batch"]  # evaluations that the solve before it took
    status: Int[Array, " batch"]  # of that solve, a `jdeq.Status`
    done: Bool[Array, " batch"]  # whether it, or one before it, is the stop token
    key: Key[Array, ""]


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: int[batch, steps]; after the stop token: that token.
      log_probs: float[batch, steps], in nats, under the model itself; 0 after the stop.
      nfe: int[batch, steps], evaluations of the solves, 0 after the stop; the first is the largest
        of the prompt's, without a cache all are the largest of the text's.
      status: int[batch, steps], of the solves, a `jdeq.Status`, the worst likewise.
    """

    tokens: Int[Array, "batch steps"]
    log_probs: Float[Array, "batch steps"]
    nfe: Int[Array, "batch steps"]
    status: Int[Array, "batch steps"]


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
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or 0 in prompt.shape or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(
            f"{name}: prompt must be integers [batch, length], neither of them 0; got "
            f"{prompt.dtype} of shape {prompt.shape}"
        )
    prompt = prompt.astype(jnp.int32)
    batch, length = prompt.shape
    if cached:
        new, read = _read(model, variables, prompt)
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
        if not getattr(model, "causal", True):
            raise ValueError(
                f"{name}: cached=False needs a model that solves causally, or what is not written "
                "yet takes part; got causal=False"
            )
        read = Whole(jnp.pad(prompt, ((0, 0), (0, steps - 1))), jnp.int32(length))
        new = _reread(model, variables, read)
    if stop_token is not None:
        require_integer(name, "stop_token", stop_token, 0)
        if stop_token >= new.logits.shape[-1]:
            raise ValueError(
                f"{name}: stop_token must be below the model's {new.logits.shape[-1]} tokens; got "
                f"{stop_token}"
            )
    before = Decoding(
        read=read,
        token=jnp.zeros(batch, jnp.int32),
        log_prob=jnp.zeros(batch, new.logits.dtype),
        nfe=jnp.zeros(batch, jnp.int32),
        status=jnp.zeros(batch, jnp.int32),
        done=jnp.zeros(batch, bool),
        key=key,
    )
    return _drawn(before, read, new, sampling, stop_token)


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
        new = _reread(model, variables, read)
    else:
        new, read = _read(model, variables, state.token[:, None], state.read)
    return _drawn(state, read, new, sampling, stop_token)


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
        lead to no equilibrium. It reads prompt and text as one segment, however long, without the
        memory of a training run.
      variables: its parameters; the collections "memory" and "cache" are left aside.
      prompt: ids, integers [batch, length], neither of them 0. After one that the model does not
        know all log-probabilities of the row are NaN.
      key: of the draws; the same key gives the same text.
      steps: tokens to generate, >= 1.
      sampling: how; None: ``Sampling()``, from the model's own distribution.
      stop_token: id after which a row is done; None: no row ends early.
      cached: False calls the model on the whole text for each token, for a model without a cache.
    Returns:
      the tokens, their log-probabilities, and what each took to solve for.
    Raises:
      ValueError: for a prompt or number out of range, a model without a cache (or, with
        ``cached=False``, one that does not solve causally), or a text longer than the model can
        read.
    Cost: one solve of the prompt, and one solve of a single position a token, where a solve of all
      takes its place unless ``cached``. The cache of an attention holds ``length + steps - 1``
      positions, that of a TrellisNet its largest dilation, that of an LSTM one state.
    """
    options: Any = {"sampling": sampling or Sampling(), "stop_token": stop_token}
    first = start(model, variables, prompt, key, steps=steps, cached=cached, **options)

    def step(state: Decoding, _):
        # The rows that are done go along: a batch is one program.
        new = advance(model, variables, state, **options)
        return new, (new.token, new.log_prob, new.nfe, new.status)

    _, rest = jax.lax.scan(step, first, None, length=steps - 1)
    whole = zip((first.token, first.log_prob, first.nfe, first.status), rest, strict=True)
    return Generated(*(jnp.concatenate([a[:, None], b.T], axis=1) for a, b in whole))


class _Next(NamedTuple):
    """What a model says of the token after those it has read."""

    logits: Float[Array, "batch vocab"]  # NaN if one of them was unknown
    nfe: Int[Array, " batch"]  # the largest of their solves
    status: Int[Array, " batch"]  # the largest likewise: CONVERGED is the smallest


def _read(
    model: nn.Module, variables: dict[str, Any], tokens: Array, cache: dict[str, Any] | None = None
) -> tuple[_Next, dict[str, Any]]:
    """What follows ``tokens``, and the cache once these have been read too."""
    known = _without_state(variables) | ({} if cache is None else {"cache": cache})
    outputs: Any = model.apply(known, tokens, mutable=["cache"])
    (logits, solution), kept = outputs
    return _next(logits, solution, tokens.shape[1]), kept.get("cache", {})


def _reread(model: nn.Module, variables: dict[str, Any], whole: Whole) -> _Next:
    outputs: Any = model.apply(_without_state(variables), whole.text)
    logits, solution = outputs
    return _next(logits, solution, whole.length)


def _next(logits: Float[Array, "batch length vocab"], solution: Solution, length: Any) -> _Next:
    """From the first ``length`` positions."""
    last = jax.lax.dynamic_index_in_dim(logits, length - 1, axis=1, keepdims=False)
    there = jnp.arange(logits.shape[1]) < length
    unknown = jnp.any(jnp.isnan(logits[..., 0]) & there, axis=1)

    def largest(a: Array) -> Array:  # one entry a position, or a sequence
        return a if a.ndim == 1 else jnp.where(there, a, 0).max(axis=1)

    return _Next(
        jnp.where(unknown[:, None], jnp.nan, last),
        largest(solution.stats.nfe),
        largest(solution.stats.status),
    )


def _without_state(variables: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in variables.items() if name not in ("memory", "cache")}


def _padded(a: Array, room: jax.ShapeDtypeStruct) -> Array:
    return jnp.pad(a, [(wide - size, 0) for size, wide in zip(a.shape, room.shape, strict=True)])


def _drawn(
    before: Decoding,
    read: dict[str, Any] | Whole,
    new: _Next,
    sampling: Sampling,
    stop_token: int | None,
) -> Decoding:
    key, used = jax.random.split(before.key)
    log_probs = jax.nn.log_softmax(new.logits)
    token = sampling.draw(used, log_probs)
    if stop_token is not None:
        token = jnp.where(before.done, stop_token, token)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    log_prob = jnp.where(jnp.isnan(before.log_prob), jnp.nan, log_prob)
    return Decoding(
        read=read,
        token=token,
        log_prob=jnp.where(before.done, 0.0, log_prob),
        nfe=jnp.where(before.done, 0, new.nfe),
        status=jnp.where(before.done, Status.CONVERGED, new.status).astype(jnp.int32),
        done=before.done if stop_token is None else before.done | (token == stop_token),
        key=key,
    )
