"""Multiscale deep equilibrium segmentation model: the class of every pixel from all scales of z*.

    x = stem(images);  z* = f(z*, x);  h = [z*_0, up(z*_1), up(z*_2), ...]
    logits = up(conv(relu(BN(conv h)))),  1x1 convolutions

Source: Bai, Koltun and Kolter (2020), Multiscale Deep Equilibrium Models, arXiv 2006.08656,
section 4.3, and its published code. Deviations: both upsamplings are bilinear between the centres
of pixels (the code aligns corners in both); BatchNorm momentum 0.9 (the code: 0.99 here, 0.9 in
the classifier); initialisation as in mdeq.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jdeq.models.equilibrium_model import EquilibriumModel
from jdeq.models.image_parts import batch_norm
from jdeq.models.mdeq import equilibrium
from jdeq.models.mdeq_config import MDEQSegmenterConfig
from jdeq.types import Solution


class MDEQSegmenter(EquilibriumModel):
    """``logits = head(z*)`` for every pixel, ``z* = cell(z*, stem(images))`` as in `MDEQ`.

    BatchNorm is in the stem and the head only: training needs ``mutable=['batch_stats']``.

    Args:
      config: the architecture.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
      dtype: of the computation and the state; None: that of the parameters and images. Parameters
        and logits are float32.
    """

    config: MDEQSegmenterConfig
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch height width classes"], Solution]:
        """Logits of every pixel and the equilibrium solve.

        Args:
          images: float[batch, height, width, colours], the sides divisible by
            2^(downsamples + scales - 1).
          train: BatchNorm by the batch's statistics (and update the running ones).
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, height, width, num_classes]; the Solution, whose z is the tuple of
          scales.
        Raises:
          ValueError: if a side of the images is not divisible as above.
        Cost: sol.stats.nfe evaluations of the cell; the head holds
          ``2 sum(channels)`` numbers for each position of the finest scale.
        """
        sol = equilibrium(self, images, train, probe)
        h = jnp.concatenate([_upsampled(z, sol.z[0]) for z in sol.z], axis=-1)
        width = h.shape[-1]
        h = nn.Conv(width, (1, 1), dtype=self.dtype, name="head_conv")(h)
        h = nn.relu(batch_norm(train, self.dtype)(h))
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        logits = nn.Conv(self.config.num_classes, (1, 1), name="classify")(h)
        return _upsampled(logits, images), sol


def _upsampled(maps: Array, like: Array) -> Array:
    """``maps`` with the height and width of ``like``."""
    size = like.shape[1], like.shape[2]
    if maps.shape[1:3] == size:
        return maps
    return jax.image.resize(maps, (maps.shape[0], *size, maps.shape[-1]), "bilinear")
