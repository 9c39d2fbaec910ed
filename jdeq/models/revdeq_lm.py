"""The reversible DEQ language model: one GPT-2 block as the map of an implicit layer.

    z* = f(z*, x),  f(z, x) = h + MLP(LN(h)),  h = z + Attention(LN(z + x)),  x = token + position

Source: McCallum, Arora, Foster (2025), Reversible Deep Equilibrium Models, arXiv 2509.12917,
section 4.1. Deviations: solved causally, each position for itself (see ``causal``); a LayerNorm
before the head, as in GPT-2 (Radford et al., 2019). GPT-2's deviation of weights, 0.02, is taken
for its width of 768 and scaled to others; its embeddings are not: at 0.02 they would be drowned
out by the state that they are added to.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq.gradients import ReversibleGradient
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.tokens import known_tokens, mark_unknown
from jdeq.solvers import Reversible
from jdeq.types import Solution, require_integer

_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")  # 0.021 at width 768


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevDEQLMConfig:
    """What a reversible DEQ language model is made of.

    Args:
      vocab_size: tokens are 0..vocab_size - 1.
      length: tokens in a window, for each of which a position is learned; >= 1.
      width: of the state of a token; a multiple of ``heads``.
      heads: of the attention, >= 1.
      expansion: hidden units of the MLP per unit of width, >= 1.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    vocab_size: int
    length: int
    width: int
    heads: int
    expansion: int = 4

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require_integer("jdeq.models.RevDEQLMConfig", name, value, 1)
        if self.width % self.heads:
            raise ValueError(
                "jdeq.models.RevDEQLMConfig: width must be a multiple of heads "
                f"({self.heads}); got {self.width}"
            )


REVDEQ_WIKITEXT103 = RevDEQLMConfig(vocab_size=50304, length=448, width=768, heads=12)
"""WikiText-103 in GPT-2's subwords: 84.7M parameters (94M in the paper, whose released code has a
hidden layer more in its MLP); 23.2 perplexity a subword there, with 4 steps of beta 0.5 at most."""


class RevDEQLMCell(nn.Module):
    """``h = z + Attention(LN(z + x)); h + MLP(LN(h))``, causal.

    Args (of a call):
      z, x: float[batch, length, width]; x is the injection.
    Returns:
      the shape of z.
    """

    heads: int
    expansion: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, z, x):
        batch, length, width = z.shape

        def dense(features, name):
            return nn.Dense(features, kernel_init=_kernel, dtype=self.dtype, name=name)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        qkv = dense(3 * width, "qkv")(norm("norm1")(z + x))
        heads = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = jnp.moveaxis(heads, 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        h = z + dense(width, "out")(attended.reshape(z.shape))
        hidden = nn.gelu(dense(self.expansion * width, "up")(norm("norm2")(h)))
        return h + dense(width, "down")(hidden)


class RevDEQLM(EquilibriumModel):
    """Token and position embeddings, one implicit block, LayerNorm, an untied linear head.

    The cell is an ordinary one: any solver and rule of jdeq may take the place of the reversible
    pair.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      causal: each position stops, and is counted, for itself, so that no output depends on a later
        token at any budget; False takes a window as one sample.
      dtype: of the computation and the state; None: that of the parameters.
    """

    config: RevDEQLMConfig
    solver: Any = Reversible(beta=0.5)
    gradient: Any = ReversibleGradient()
    max_steps: int = 4
    causal: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch length"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch length vocab"], Solution]:
        """Logits of the token after each, and the solve.

        Args:
          tokens: ids in 0..vocab_size - 1, at most ``config.length`` a row. The logits after
            another id are NaN.
          train: changes nothing: there is no dropout in the recipe.
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, length, vocab_size]; a Solution with a state
          [batch, length, width] and, if ``causal``, statistics [batch, length], else [batch].
        Raises:
          ValueError: for tokens of another rank or dtype, or a row that is too long.
        Cost: sol.stats.nfe evaluations of the cell.
        """
        del train
        config = self.config
        tokens, known = known_tokens("jdeq.models.RevDEQLM", tokens, config.vocab_size)
        if tokens.shape[1] > config.length:
            raise ValueError(
                f"jdeq.models.RevDEQLM: tokens must have at most config.length={config.length} a "
                f"row; got {tokens.shape[1]}"
            )
        unit = nn.initializers.normal(1.0)
        embed = nn.Embed(config.vocab_size, config.width, embedding_init=unit, name="token")
        position = nn.initializers.normal(0.3)
        where = self.param("position", position, (config.length, config.width))
        x = embed(tokens) + where[: tokens.shape[1]]
        solution = equilibrium_layer(
            self,
            RevDEQLMCell(config.heads, config.expansion, self.dtype, parent=None),
            name="block",
            causal=self.causal,
        )(x if self.dtype is None else x.astype(self.dtype), probe=probe)
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(solution.z)
        head = nn.Dense(config.vocab_size, use_bias=False, kernel_init=_kernel, name="head")
        logits = head(h.astype(jnp.promote_types(h.dtype, jnp.float32)))
        return mark_unknown(logits, known), solution
