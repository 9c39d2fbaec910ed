"""What the image models share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array


def batch_norm(
    train: bool, dtype: Any, affine: bool = True, name: str | None = None
) -> nn.BatchNorm:
    """By the batch's statistics if ``train``, else by the running ones, of momentum 0.9."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        use_bias=affine,
        use_scale=affine,
        name=name,
    )


def check_rank(who: str, shape: tuple[int, ...], name: str = "images") -> None:
    """Refuse what is not a batch of images, channels last."""
    if len(shape) != 4:
        raise ValueError(f"{who}: {name} must be [batch, height, width, channels]; got {shape}")


def stem_pool(x: Array) -> Array:
    """The largest of 3x3 positions, stride 2, as the stems for large images end."""
    padding: Any = ((1, 1), (1, 1))  # as flax takes it; its annotation has names only
    return nn.max_pool(x, (3, 3), (2, 2), padding)
