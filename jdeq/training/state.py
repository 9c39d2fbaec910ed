"""What a training run carries from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from jdeq.training.averaging import averaged_params

PyTree = Any


class TrainState(NamedTuple):
    """Everything a step reads and writes; saved and restored as a whole.

    Attributes:
      step: int[], steps taken, skipped ones included; also the position in the data.
      params: the parameters.
      model_state: the other collections, batch_stats for one.
      opt_state: of the optax optimiser.
      key: the key of step n is ``fold_in(key, n)``.
      skipped: int[], steps whose update was left out as non-finite.
      skipped_in_row: int[], how many of them just now, without a good one between.
    """

    step: Int[Array, ""]
    params: PyTree
    model_state: dict[str, PyTree]
    opt_state: optax.OptState
    key: Key[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]

    @property
    def variables(self) -> dict[str, PyTree]:
        """What ``model.apply`` takes."""
        return {"params": self.params, **self.model_state}

    @property
    def averaged_variables(self) -> dict[str, PyTree]:
        """The same with the average of the parameters, where the optimiser keeps one.

        Running statistics of a normalisation remain those of the parameters themselves.
        """
        average = averaged_params(self.opt_state)
        return self.variables if average is None else self.variables | {"params": average}


def make_init(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[..., TrainState]:
    """``init(key, inputs) -> TrainState``: pure, for jit, eval_shape or jit with out_shardings.

    Args:
      model: called as ``model(inputs)``.
      optimizer: whose state is initialised from the parameters.
    """

    def init(key: Key[Array, ""], inputs: Array) -> TrainState:
        params_key, dropout_key, run_key = jax.random.split(key, 3)
        variables = dict(model.init({"params": params_key, "dropout": dropout_key}, inputs))
        variables.pop("jdeq", None)  # statistics of the initialising call
        params = variables.pop("params")
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=variables,
            opt_state=optimizer.init(params),
            key=run_key,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_row=jnp.zeros((), jnp.int32),
        )

    return init


def abstract_state(
    init: Callable[..., TrainState], key: Key[Array, ""], inputs: Array | np.ndarray
) -> TrainState:
    """Shapes, dtypes and one device of what ``init`` returns: what a restore asks for."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init, key, inputs),
    )
