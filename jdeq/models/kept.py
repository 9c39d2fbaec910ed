"""What a sequence model keeps of the positions it has read: a memory of earlier segments while it
is trained, the cache of what it generates from.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Kept:
    """The latest positions of some sequences, in the variable collection ``collection``.

    Used within a compact method: read ``past`` and ``filled``, then ``write``. They take part where
    the caller makes the collection mutable; else there are none. A collection of zeros is empty:
    that is how a pass begins (``jax.tree.map(jnp.zeros_like, collection)``; ``filled[row] = 0`` for
    a row). What is kept is not differentiated.

    Args:
      module: whose variables they are.
      collection: "memory", which a training step makes mutable with all of its model state, so that
        evaluation on windows neither sees the training text nor needs its batch size; or "cache",
        which `jdeq.models.generate` makes mutable.
      like: by name, the shape [batch, any, ...] and the dtype of what is kept.
      length: positions kept, >= 0; None: as in the collection given, or as many as are written.
    Raises:
      ValueError: if the collection given is of another batch.
    Cost: two copies of what is kept.
    """

    past: dict[str, Float[Array, "batch kept *features"]]
    """By name, the latest last; of length 0 where there is none."""
    filled: Int[Array, " batch"] | None
    """How many of them are there, the last ones; None: all (of none)."""

    def __init__(
        self,
        module: nn.Module,
        collection: Literal["memory", "cache"],
        like: dict[str, Any],
        *,
        length: int | None = None,
    ):
        starting = module.is_initializing()
        self._write = not starting
        self._variables, self._start = {}, None
        # To init everything is mutable, but a model starts without a cache.
        absent = not module.is_mutable_collection(collection) or (
            starting and collection == "cache"
        )
        empty = {
            name: jnp.zeros((a.shape[0], 0, *a.shape[2:]), a.dtype) for name, a in like.items()
        }
        self.past, self.filled = empty, None
        if length == 0 or absent:
            return
        batch = next(iter(like.values())).shape[0]
        if length is None and not module.has_variable(collection, "filled"):
            self.past, self.filled = empty, jnp.zeros(batch, jnp.int32)
            self._start = functools.partial(module.put_variable, collection)
            return
        for name, a in like.items():
            kept = module.get_variable(collection, name).shape[1] if length is None else length
            shape = (a.shape[0], kept, *a.shape[2:])
            variable = module.variable(collection, name, jnp.zeros, shape, a.dtype)
            if variable.value.shape != shape:
                raise ValueError(
                    f"jdeq.models: the {collection} {name!r} must have the shape {shape}; got "
                    f"{variable.value.shape}. Start another batch with an empty {collection}: "
                    f'leave the collection "{collection}" out'
                )
            self._variables[name] = variable
        self._filled = module.variable(collection, "filled", jnp.zeros, (batch,), jnp.int32)
        self.past = {name: variable.value for name, variable in self._variables.items()}
        self.filled = self._filled.value

    def write(self, new: dict[str, Float[Array, "batch length *features"]]) -> None:
        """Append a segment; the oldest positions go."""
        if not self._write or self.filled is None:
            return
        if self._start is not None:
            for name, a in new.items():
                self._start(name, jax.lax.stop_gradient(a))
            self._start("filled", self.filled + next(iter(new.values())).shape[1])
        for name, variable in self._variables.items():
            old = variable.value
            a = jax.lax.stop_gradient(new[name]).astype(old.dtype)
            variable.value = jnp.concatenate([old, a], axis=1)[:, -old.shape[1] :]
            self._filled.value = jnp.minimum(self.filled + a.shape[1], old.shape[1])


def attention_cache(
    module: nn.Module,
    like: Float[Array, "batch length any"],
    heads: int,
    width: int,
    *,
    layers: int = 1,
) -> Kept:
    """Room for the keys and values of attention layers, "keys0", "values0" and so on.

    Args:
      module: whose variables they are.
      like: its batch, length and dtype.
      heads, width: of the attention.
      layers: how many there are.
    """
    shape = (*like.shape[:2], heads, width // heads)
    names = [f"{part}{layer}" for layer in range(layers) for part in ("keys", "values")]
    return Kept(module, "cache", dict.fromkeys(names, jax.ShapeDtypeStruct(shape, like.dtype)))
