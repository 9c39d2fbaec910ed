"""What a sequence model keeps of a segment for the next one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class SegmentMemory:
    """The latest ``length`` positions of some sequences, in the collection "memory".

    Used within a compact method: read ``past`` and ``filled``, then ``write``. The memory takes
    part where the caller makes the collection mutable, as a training step does with all of its
    model state; else, and with length 0, there is none, so that evaluation on windows neither sees
    the training text nor needs its batch size. A collection of zeros is the empty memory: that is
    how a pass begins (``jax.tree.map(jnp.zeros_like, collection)``; ``filled[row] = 0`` for a row).

    Args:
      module: whose variables they are.
      length: positions kept, >= 0.
      like: by name, arrays of the shape [batch, any, features] and the dtype of what is kept.
    Raises:
      ValueError: if the memory given is of another batch.
    Cost: two copies of what is kept; nothing that is kept is differentiated.
    """

    past: dict[str, Float[Array, "batch memory features"]]
    """By name, the latest last; of memory 0 where there is none."""
    filled: Int[Array, " batch"] | None
    """How many of them are there, the last ones."""

    def __init__(self, module: nn.Module, length: int, like: dict[str, Array]):
        self._write = not module.is_initializing()
        self._variables = {}
        if length == 0 or not module.is_mutable_collection("memory"):
            self.past = {name: a[:, :0] for name, a in like.items()}
            self.filled = None
            return
        for name, a in like.items():
            shape = (a.shape[0], length, a.shape[2])
            variable = module.variable("memory", name, jnp.zeros, shape, a.dtype)
            if variable.value.shape != shape:
                raise ValueError(
                    f"jdeq.models: the memory {name!r} must have the shape {shape}; got "
                    f"{variable.value.shape}. Start another batch with an empty memory: leave the "
                    'collection "memory" out'
                )
            self._variables[name] = variable
        batch = next(iter(like.values())).shape[0]
        self._filled = module.variable("memory", "filled", jnp.zeros, (batch,), jnp.int32)
        self.past = {name: variable.value for name, variable in self._variables.items()}
        self.filled = self._filled.value

    def write(self, new: dict[str, Float[Array, "batch length features"]]) -> None:
        """Append a segment; the oldest positions go."""
        if not self._write or self.filled is None:
            return
        for name, variable in self._variables.items():
            old = variable.value
            a = jax.lax.stop_gradient(new[name]).astype(old.dtype)
            variable.value = jnp.concatenate([old, a], axis=1)[:, -old.shape[1] :]
            self._filled.value = jnp.minimum(self.filled + a.shape[1], old.shape[1])
