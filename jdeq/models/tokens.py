"""What the sequence models ask of their input."""

import jax.numpy as jnp
from jaxtyping import Array


def require_tokens(owner: str, tokens: Array) -> None:
    """Raise ValueError unless ``tokens`` are integers [batch, length]."""
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(
            f"{owner}: tokens must be integers [batch, length]; got "
            f"{jnp.result_type(tokens)} of shape {jnp.shape(tokens)}"
        )
