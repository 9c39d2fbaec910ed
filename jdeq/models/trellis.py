"""TrellisNet as a deep equilibrium model: a causal convolution of kernel 2, gated like an LSTM.

    (h*, c*) = f((h*, c*), x), where f takes a step for each dilation d of a cycle, in turn:
    i, o, f, g = W_h [h_{t-d}; h_t] + W_x [x_{t-d}; x_t] + b
    c_t <- sigmoid(f) c_{t-d} + sigmoid(i) tanh(g),    h_t <- sigmoid(o) tanh(c_t)

The weights are the same at every step; what lies before the sequence is zero.

Source: Bai, Kolter, Koltun (2019), Trellis Networks for Sequence Modeling, section 4.2 (the step),
its published code (dropout, dilations, sizes); Bai, Kolter, Koltun (2019), Deep Equilibrium Models,
section 4.1 (the fixed point). Deviations: a DEQ needs one map, so a cycle of dilations is one
evaluation; solved causally, each position for itself (see ``causal``); the gate f starts at 0.73
instead of 0.5 (Jozefowicz, Zaremba, Sutskever 2015), from weights of the published deviation, 0.01
at width 1400, scaled to other widths. Not here: dropout of whole words, losses at intermediate
layers, softmax experts, and a state handed on from the text before.

Configurations: trellis_config.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from jdeq.gradients import Unrolled
from jdeq.layers import VariationalDropout, WeightNormDense
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.kept import Kept
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.models.trellis_config import TrellisConfig
from jdeq.solvers import Picard
from jdeq.types import Solution, require_integer

State = dict[str, Float[Array, "batch length width"]]

_kernel = nn.initializers.variance_scaling(1 / 4, "fan_in", "normal")  # 0.0095 at width 1400


def _bias(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros, and ones for the gate f."""
    del key
    return jnp.zeros(shape, dtype).reshape(4, -1).at[2].set(1.0).ravel()


class TrellisInjection(NamedTuple):
    """The x of a `TrellisCell`.

    Attributes:
      gates: ``W_x [x_{t-d}; x_t]``, float[batch, length, 4 width], one a dilation, in the order of
        the gates i, o, f, g.
      before: what each step of the cycle read at the positions before; None: nothing stands before.
    """

    gates: tuple[Float[Array, "batch length 4*width"], ...]
    before: tuple[State, ...] | None


class TrellisCell(nn.Module):
    """One step for each dilation, the weights shared: ``(h, c) <- LSTM(W_h * h + injection, c)``.

    Args (of a call):
      z: {"h", "c"}, float[batch, length, width] each.
      x: the injections, and what stands before.
    Returns:
      the structure and shapes of z.
    """

    width: int
    dilations: tuple[int, ...] = (1,)
    dropout: float = 0.0
    drop_connect: float = 0.0
    dtype: Any = None

    def initial_state(self, x: TrellisInjection) -> State:
        """Zeros."""
        gates = x.gates[0]
        zeros = jnp.zeros((*gates.shape[:-1], self.width), gates.dtype)
        return {"h": zeros, "c": zeros}

    def __call__(self, z: State, x: TrellisInjection) -> State:
        return self.cycle(z, x)[-1]

    @nn.compact
    def cycle(self, z: State, x: TrellisInjection) -> list[State]:
        """z and the states after each step of the cycle."""
        gates = WeightNormDense(
            4 * self.width,
            kernel_init=_kernel,
            bias_init=_bias,
            drop_connect=self.drop_connect,
            name="gates",
        )
        # One mask of each kind for the whole cycle: drawn once, that of h as a factor.
        w, b = gates.weight(2 * self.width)
        drop = VariationalDropout(self.dropout, broadcast_dims=(1,))
        mask = drop(jnp.ones_like(z["h"][:, :1]))
        states = [z]
        for step, (dilation, injection) in enumerate(zip(self.dilations, x.gates, strict=True)):
            h, c = states[-1]["h"], states[-1]["c"]
            h0, c0 = (x.before[step][part] for part in "hc") if x.before else (None, None)
            read = _pair(mask * h, dilation, None if h0 is None else mask * h0)
            read, w, b = promote_dtype(read, w, b, dtype=self.dtype)
            i, o, f, g = jnp.split(read @ w + b + injection, 4, axis=-1)
            c = nn.sigmoid(f) * _past(c, dilation, c0) + nn.sigmoid(i) * jnp.tanh(g)
            states.append({"h": nn.sigmoid(o) * jnp.tanh(c), "c": c})
        return states


class DEQTrellisNet(EquilibriumModel):
    """Embedding, the equilibrium of a `TrellisCell`, and logits for every position.
    `jdeq.models.generate` keeps the latest states in the collection "cache".

    Dropout is on when a 'dropout' rng is given: one mask a call and sequence, shared by all
    positions and evaluations.

    Information travels ``sum(dilations)`` positions an evaluation, so that a budget below
    ``length / sum(dilations)`` cannot converge. Information from further back is missing then, as
    in a TrellisNet of that depth.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``. The map
        being nearly triangular in time, plain Picard needs the fewest evaluations here (3.7 for
        Anderson's 4.2 and Broyden's 4.1 on the copy memory task).
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      causal: each position stops, and is counted, for itself, so that no output depends on a later
        token at any budget; False takes a sequence as one sample.
      dtype: of the computation and the state; None: that of the parameters.
    """

    config: TrellisConfig
    solver: Any = Picard()
    causal: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch length vocab"], Solution]:
        """Logits for every position, and the solve.

        Args:
          tokens: ids in 0..vocab_size - 1; the logits after another id are NaN.
          train: changes nothing: dropout goes by the rng.
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, length, vocab_size]; a Solution with a state {"h", "c"} of
          [batch, length, width] and, if ``causal``, statistics [batch, length], else [batch].
        Raises:
          ValueError: for tokens of another rank or dtype.
        Cost: sol.stats.nfe evaluations of the cell; the injection is computed once.
        """
        del train
        config = self.config
        tokens, known = known_tokens("jdeq.models.DEQTrellisNet", tokens, config.vocab_size)

        def drop(rate, a):
            return VariationalDropout(rate, broadcast_dims=(1,))(a)

        # As published where it is the output matrix too; of the size of h where it is not.
        scale = 0.1 / 3**0.5 if config.tied else 1.0
        init = nn.initializers.normal(scale)
        embed = nn.Embed(config.vocab_size, config.embed_width, embedding_init=init, name="token")
        x = drop(config.input_dropout, embed(tokens))
        inject = WeightNormDense(
            4 * config.width, use_bias=False, kernel_init=_kernel, dtype=self.dtype, name="inject"
        )
        steps = range(len(config.dilations))
        like = jax.ShapeDtypeStruct((*tokens.shape, config.width), self.dtype or x.dtype)
        cache = Kept(
            self,
            "cache",
            {"x": x} | {f"{part}{step}": like for step in steps for part in "hc"},
            length=max(config.dilations),
        )
        generating = cache.filled is not None
        x0, before = cache.past["x"] if generating else None, None
        if generating:
            before = tuple({part: cache.past[f"{part}{step}"] for part in "hc"} for step in steps)
        gates = tuple(inject(_pair(x, dilation, x0)) for dilation in config.dilations)
        injection = TrellisInjection(gates, before)
        cell = TrellisCell(
            config.width,
            config.dilations,
            config.dropout,
            config.drop_connect,
            self.dtype,
            name="cell",
        )
        solution = equilibrium_layer(self, cell, name="trellis", causal=self.causal)(
            injection, probe=probe
        )
        if generating:
            states = cell.cycle(solution.z, injection)
            read = {f"{part}{step}": states[step][part] for step in steps for part in "hc"}
            cache.write({"x": x} | read)
        h = solution.z["h"]
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        if config.tied:
            h = h[..., -config.embed_width :]
        h = drop(config.output_dropout, h)
        if not config.tied:
            return mark_unknown(nn.Dense(config.vocab_size, name="head")(h), known), solution
        bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        return mark_unknown(embed.attend(h) + bias, known), solution


def trellis_net(config: TrellisConfig, *, layers: int, dtype: Any = None) -> DEQTrellisNet:
    """The explicit TrellisNet: ``layers`` weight-tied cycles of dilations from zero, no solver.

    The variables are those of the DEQ. It is the same module, iterated by Picard and differentiated
    through its steps: layer k computes f of layer k - 1, every layer under the same dropout mask
    (as published).

    Args:
      config: the architecture; a cycle of one dilation, the default, is one layer.
      layers: >= 1.
      dtype: as of `DEQTrellisNet`.
    Cost: ``layers + 1`` evaluations of the cell, the last one for the residual in the Solution.
      Unlike the published network it keeps the states of all layers only, and computes the rest
      again in reverse; the residual tests and the freezing of positions cost a little as well.
    """
    require_integer("jdeq.models.trellis_net", "layers", layers, 1)
    return DEQTrellisNet(
        config,
        solver=Picard(),
        gradient=Unrolled(),
        # No position stops before the last layer, unless nothing moves any more. The absolute
        # tolerance is there because a relative one of 0 alone is worth a warning.
        rtol=0.0,
        atol=1e-30,
        max_steps=layers,
        dtype=dtype,
    )


def _past(
    a: Float[Array, "batch length width"], by: int, before: Array | None = None
) -> Float[Array, "batch length width"]:
    """What stood ``by`` positions earlier: in a, in ``before`` [batch, >= by, width], which ends
    where a begins; zero where nothing stands there.
    """
    if before is None:
        return jnp.pad(a, ((0, 0), (by, 0), (0, 0)))[:, : a.shape[1]]
    start = before.shape[1] - by
    return jnp.concatenate([before, a], axis=1)[:, start : start + a.shape[1]]


def _pair(
    a: Float[Array, "batch length width"], by: int, before: Array | None = None
) -> Float[Array, "batch length pair"]:
    """What a kernel of 2 sees: a causal convolution is a matrix product with it."""
    return jnp.concatenate([_past(a, by, before), a], axis=-1)
