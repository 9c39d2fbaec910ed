"""How loosely a trained run may solve backward: ``python -m experiments.noise --workdir DIR``.

The gradient of a batch differs from the mean gradient by the choice of its examples. An adjoint
solve need not be more exact than a small part of that: for each tolerance, its products, what its
gradients are off by (of a batch and of the mean over batches, relative to each), and that over the
noise. The error has a direction, the same at every step, and does not average out as the noise
does: stay well below it. The run itself is left as it was.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

import jdeq
from experiments import trained
from experiments.build import Run
from experiments.cli import command
from experiments.config import ConfigError
from experiments.tables import markdown_of
from jdeq.training import TrainState

REFERENCE = 1e-6
"""Relative tolerance of the adjoint solves that others are compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train whose model has an equilibrium."""
    batches: int = 8
    """Training batches that are compared, at least 2."""
    rtols: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 1e-1)
    """Relative tolerances of the adjoint solve."""
    max_steps: int = 300
    """Budget of every solve; the forward ones go to a relative residual of 1e-5."""


def run(arguments: Arguments) -> int:
    """Restore, measure, print a Markdown table and the size of the noise."""
    if arguments.batches < 2:
        raise ConfigError(f"batches must be >= 2; got {arguments.batches}")
    if bad := [rtol for rtol in arguments.rtols if not REFERENCE < rtol < 1]:
        raise ConfigError(f"rtols must lie in ({REFERENCE:g}, 1); got {bad[0]}")
    loaded, restored = trained.load(arguments.workdir, Console(highlight=False, stderr=True))
    if not loaded.implicit:
        raise ConfigError("workdir must hold a run of a model with an equilibrium")
    exact, _, residual = gradients(loaded, restored.state, REFERENCE, arguments)
    noise, signal = noise_and_signal(exact)
    length = np.linalg.norm(exact.mean(0))
    rows = []
    for rtol in arguments.rtols:
        found, products, _ = gradients(loaded, restored.state, rtol, arguments)
        off = np.linalg.norm(found - exact, axis=1)
        relative = np.median(off / np.linalg.norm(exact, axis=1))
        rows.append(
            {
                "adjoint rtol": f"{rtol:g}",
                "products": f"{products:.1f}",
                "error of a batch": f"{relative:.1e}",
                "error of the mean": f"{np.linalg.norm((found - exact).mean(0)) / length:.1e}",
                "error over noise": f"{np.median(off) / noise:.3f}",
            }
        )
    print(markdown_of(rows))
    share = f"{noise / signal:.2f} of its length" if signal else "so much that it is not resolved"
    print(
        f"\nNoise: the gradient of a batch differs from the mean by {share}. The adjoint solves "
        f"that the others are compared with end at residuals up to {residual:.0e}."
    )
    return 0


def noise_and_signal(gradients: np.ndarray) -> tuple[float, float]:
    """How far a batch's gradient is from the mean gradient, root mean square, and how long that one
    is; 0 where the mean of these [batches, parameters] is no longer than chance makes it.
    """
    mean = gradients.mean(0)
    variance = np.sum((gradients - mean) ** 2) / (len(gradients) - 1)
    signal = np.sum(mean**2) - variance / len(gradients)
    return float(np.sqrt(variance)), float(np.sqrt(max(signal, 0.0)))


def gradients(
    loaded: Run, state: TrainState, rtol: float, arguments: Arguments
) -> tuple[np.ndarray, float, float]:
    """Of every batch, float64 [batches, parameters], with one dropout mask for all; mean products
    and largest relative residual of their adjoint solves.
    """
    steps = arguments.max_steps
    rule = jdeq.Implicit(rtol=rtol, max_steps=steps)
    loss_fn = loaded.loss(loaded.model.clone(rtol=1e-5, max_steps=steps, gradient=rule))

    @jax.jit
    def differentiate(params, probe, model_state, batch):
        def loss(params, probe):
            return loss_fn(
                params, model_state, batch, key=state.key, probe=probe, penalize=False
            ).loss_nats

        return jax.grad(loss, argnums=(0, 1))(params, probe)

    vectors, reports = [], []
    for position in range(arguments.batches):
        batch: Any = loaded.task.batches(position)
        grads, probe = differentiate(state.params, jdeq.backward_probe(), state.model_state, batch)
        leaves = jax.tree.leaves(grads)
        vectors.append(np.concatenate([np.asarray(a, np.float64).ravel() for a in leaves]))
        reports.append(np.asarray(probe))
    products, residuals = np.stack(reports).T
    return np.stack(vectors), float(products.mean()), float(residuals.max())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("noise", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
