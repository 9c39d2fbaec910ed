"""What the sequence models make of their input."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def known_tokens(
    owner: str, tokens: Int[Array, "batch length"], vocab_size: int
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
    """``tokens`` with 0 in place of ids outside 0..vocab_size - 1, and where they are inside.

    Ids are data, so nothing can be raised for a wrong one inside jit. NaN in its embedding would
    reach earlier positions, through products with masked zeros: see `mark_unknown`.

    Raises:
      ValueError: unless ``tokens`` are integers [batch, length]; ``owner`` is named.
    """
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(
            f"{owner}: tokens must be integers [batch, length]; got "
            f"{jnp.result_type(tokens)} of shape {jnp.shape(tokens)}"
        )
    known = (tokens >= 0) & (tokens < vocab_size)
    return jnp.where(known, tokens, 0), known


def mark_unknown(
    outputs: Float[Array, "batch length *vocab"], known: Bool[Array, "batch length"]
) -> Float[Array, "batch length *vocab"]:
    """``outputs``, NaN at the positions of unknown tokens."""
    return jnp.where(jnp.expand_dims(known, range(2, outputs.ndim)), outputs, jnp.nan)
