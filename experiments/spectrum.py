"""What training records of the Jacobian at the equilibrium."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.build import Run
from experiments.controls import rayleigh_quotient
from jdeq import jacobian_penalty, spectral_radius, tree
from jdeq.training import TrainState, equilibrium_of
from jdeq.training.metrics import Metrics

_PROBES = 16  # of the norm, which they tell within a few percent


def spectrum_hook(run: Run) -> Callable[[TrainState], tuple[str, Metrics]]:
    """For the loop: the Jacobian of the (first) cell where the training solver ends, on
    ``loop.spectrum_examples`` test examples: its spectral radius, its Frobenius norm and, with
    ``loop.power_iteration``, what the published estimator takes the radius for.
    """
    loop = run.config.loop
    inputs = run.task.test_inputs(loop.spectrum_examples)

    @functools.partial(jax.jit, out_shardings=run.layout and run.layout.replicated)
    def measure(variables):
        f, params, _, x, z = equilibrium_of(run.model, variables, inputs)
        key = jax.random.key(0)
        values = {
            "spectral_radius": spectral_radius(f, params, z, x, key),
            "jacobian_norm": frobenius_norm(f, params, z, x, key),
        }
        if loop.power_iteration:
            values["rayleigh_quotient"] = rayleigh_quotient(f, params, z, x, key)
        return values

    def hook(state):
        measures = jax.device_get(measure(state.averaged_variables))
        return "spectrum", {
            f"{name}_{n}": float(getattr(values, n)())
            for name, values in measures.items()
            for n in ("mean", "min", "max")
        }

    return hook


def frobenius_norm(f, params, z, x, key, *, num_probes: int = _PROBES) -> jax.Array:
    """``||J||_F`` per sample, from the mean of ``num_probes`` estimates as the penalty's.

    Cost: ``num_probes`` transposed products, one after another.
    """

    def estimate(key):
        return jacobian_penalty(f, params, z, x, key)

    squares = jax.lax.map(estimate, jax.random.split(key, num_probes))
    return math.sqrt(tree.sample_size(z, 1)) * jnp.sqrt(squares.mean(axis=0))
