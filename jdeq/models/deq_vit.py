"""A vision transformer whose depth is an equilibrium: one self-attention cell over patches.

    x = conv_patch(images) + position;  z* = f(z*, x);  logits = linear(mean over patches of z*)
    h1 = z + x;  h2 = h1 + Attention(LN(h1));  h3 = h2 + W_2 gelu(W_1 LN(h2));  f(z, x) = LN(h3)

The norm at the end holds the state at unit scale; for its use see decoder_lm.py.
Source: patches, positions and the pre-norm block of Dosovitskiy et al. (2021), An Image is Worth
16x16 Words, arXiv 2010.11929, equations 1 to 3; as the map of an equilibrium, with a norm at its
end, Bai, Kolter and Koltun (2019), arXiv 1909.01377. Deviations: no class token, mean pooling;
gelu in its tanh form; kernels of the cell start with the variance 1 / (3 fan_in); a dropout mask is
shared by all patches; positions start at the scale of the embedded patches, not at 0.02, with which
the digits were learned several times slower.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.layers import VariationalDropout
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.image_parts import check_rank
from jdeq.types import Solution, require_integer

_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEQViTConfig:
    """What a `DEQViT` is made of.

    Args:
      image_side: of the square images in pixels, a multiple of ``patch``.
      patch: side of a patch, >= 1.
      width: of the state of a patch; a multiple of ``heads``.
      heads: of the attention, >= 1.
      hidden: units of the feed-forward layer, >= 1.
      num_classes: of the logits, >= 1.
      dropout: rate on the outputs of attention and feed-forward layer, one draw for all patches, in
        [0, 1).
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    image_side: int
    patch: int
    width: int
    heads: int
    hidden: int
    num_classes: int
    dropout: float = 0.0

    def __post_init__(self):
        name = "jdeq.models.DEQViTConfig"
        for option in ("image_side", "patch", "width", "heads", "hidden", "num_classes"):
            require_integer(name, option, getattr(self, option), 1)
        for option, divisor in (("image_side", "patch"), ("width", "heads")):
            value, by = getattr(self, option), getattr(self, divisor)
            if value % by:
                raise ValueError(
                    f"{name}: {option} must be a multiple of {divisor} ({by}); got {value}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"{name}: dropout must lie in [0, 1); got {self.dropout}")


class DEQViTCell(nn.Module):
    """``h = z + x; h = h + Attention(LN(h)); h = h + W_2 gelu(W_1 LN(h)); LN(h)``.

    Every patch attends to all. Dropout is on when a 'dropout' rng is given.

    Args (of a call):
      z, x: float[batch, patches, width]; x is the injection.
    Returns:
      the shape of z.
    """

    config: DEQViTConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, z, x):
        config = self.config
        batch, patches, width = z.shape

        def dense(features, name):
            return nn.Dense(features, kernel_init=_kernel, dtype=self.dtype, name=name)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

        def drop(h):
            return VariationalDropout(config.dropout, broadcast_dims=(1,))(h)

        h = z + x
        qkv = dense(3 * width, "qkv")(norm("norm1")(h))
        heads = qkv.reshape(batch, patches, 3, config.heads, width // config.heads)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(heads, 2, 0))
        h = h + drop(dense(width, "out")(attended.reshape(h.shape)))
        hidden = nn.gelu(dense(config.hidden, "up")(norm("norm2")(h)))
        return norm("norm3")(h + drop(dense(width, "down")(hidden)))


class DEQViT(EquilibriumModel):
    """Patch embedding with learned positions, one implicit `DEQViTCell`, mean pool, linear.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      dtype: of the computation and the state; None: that of the parameters and images. Parameters
        and logits are float32.
    """

    config: DEQViTConfig
    max_steps: int = 24
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits and the equilibrium solve.

        Args:
          images: float[batch, image_side, image_side, colours].
          train: changes nothing: dropout is on where a 'dropout' rng is given.
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, num_classes]; the Solution with a state [batch, patches, width].
        Raises:
          ValueError: for images of another rank or other sides.
        Cost: sol.stats.nfe evaluations of the cell, each quadratic in the number of patches.
        """
        del train
        config = self.config
        check_rank("jdeq.models.DEQViT", images.shape)
        if images.shape[1:3] != (config.image_side, config.image_side):
            raise ValueError(
                f"jdeq.models.DEQViT: images must have the sides {config.image_side}, those of "
                f"the config; got {images.shape}"
            )
        size = (config.patch, config.patch)
        x = nn.Conv(config.width, size, strides=size, dtype=self.dtype, name="embed")(images)
        x = x.reshape(x.shape[0], -1, config.width)
        position = self.param("position", nn.initializers.normal(1.0), x.shape[1:], jnp.float32)
        solution = equilibrium_layer(self, DEQViTCell(config, self.dtype, parent=None), name="deq")(
            x + position.astype(x.dtype), probe=probe
        )
        z = solution.z.astype(jnp.promote_types(solution.z.dtype, jnp.float32))
        return nn.Dense(config.num_classes, name="classify")(z.mean(axis=1)), solution
