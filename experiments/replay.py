"""Find the samples that made training give up: ``python -m experiments.replay --workdir DIR``.

For a run that was stopped after too many steps in a row whose loss or gradient was not finite, as
listed in nonfinite.json. Restores the last checkpoint, goes on as the run did to the first of those
steps, whose parameters are then those of all of them, and takes each sample of their batches as a
batch of its own, in float32 whatever mesh.compute_dtype is. On one device: a run with
mesh.local_stop drew its dropout device by device, and is not followed exactly. Changes nothing.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console
from rich.table import Table

from experiments import trained, workdir
from experiments.cli import command
from experiments.config import ConfigError
from experiments.train import make_loop
from jdeq.fixed_point import backward_probe
from jdeq.training import LossFn, TrainState
from jdeq.types import Status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train that was given up."""


class Samples(NamedTuple):
    """What each sample of a batch gives in a training step as a batch of its own."""

    finite: Bool[Array, " batch"]  # its input
    loss_nats: Float[Array, " batch"]
    grad_norm: Float[Array, " batch"]
    residual: Float[Array, " batch"]  # largest, of a causal solve
    status: Int[Array, " batch"]  # worst

    @property
    def at_fault(self) -> Int[np.ndarray, " faulty"]:
        """Which of them are not finite somewhere, or diverged."""
        numbers = [np.isfinite(a) for a in (self.loss_nats, self.grad_norm, self.residual)]
        solved = ~np.isin(self.status, (Status.NONFINITE, Status.DIVERGED))
        return np.flatnonzero(~(np.logical_and.reduce(numbers) & self.finite & solved))


def make_samples(loss_fn: LossFn, *, penalize: bool) -> Callable[..., Samples]:
    """``samples(state, batch, weight) -> Samples``, jitted.

    Batch statistics are those of the sample alone, and dropout draws what it does in a batch of
    one: a NaN of one sample reaches no other.
    """

    @jax.jit
    def samples(state: TrainState, batch: Any, weight: float) -> Samples:
        key = jax.random.fold_in(state.key, state.step)

        def one(tree, n):
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, n, 1), tree)

        def judge(n):
            part = one(batch, n)
            model_state = {
                name: one(value, n) if name == "memory" else value
                for name, value in state.model_state.items()
            }

            def objective(params):
                out = loss_fn(
                    params, model_state, part, key=key, probe=backward_probe(), penalize=penalize
                )
                return out.loss_nats + weight * out.penalty, out

            grads, out = jax.grad(objective, has_aux=True)(state.params)
            return Samples(
                finite=jnp.all(jnp.isfinite(part.inputs)),
                loss_nats=out.loss_nats,
                grad_norm=optax.tree.norm(grads),
                residual=out.stats.residual.max(),
                status=out.stats.status.max(),
            )

        return jax.lax.map(judge, jnp.arange(len(batch.inputs)))

    return samples


def run(arguments: Arguments) -> int:
    """Restore, go on to the first bad step, print the samples at fault in each."""
    console = Console(highlight=False)
    steps = workdir.read_nonfinite(arguments.workdir)
    loaded, restored = trained.load(arguments.workdir, console)
    loop, state = make_loop(loaded), restored.state
    start, first = int(state.step), steps[0]["position"]
    if start > first:
        raise ConfigError(
            f"{arguments.workdir / workdir.NONFINITE_FILE} begins at step {first}, and the "
            f"checkpoint at step {start} is from after it"
        )
    console.print(f"checkpoint of step {start}, going on to step {first}", soft_wrap=True)
    for position in range(start, first):
        state, _ = loop.step(state, position)

    @functools.cache
    def samples_of(pretrains: bool, penalize: bool) -> Callable[..., Samples]:
        # With the budget of the configuration, also where the step drew another.
        model = loaded.pretrain_model if pretrains else loaded.model
        return make_samples(loaded.loss(model), penalize=penalize)

    for step in steps:
        position = step["position"]
        judge = samples_of(position < loaded.config.pretrain.steps, step["penalize"])
        samples = jax.device_get(judge(state, loop.batch_at(position), step["weight"]))
        state, metrics = loop.step(state, position)
        console.print(
            f"step {position}: loss {metrics['loss_nats']:g}, gradient norm "
            f"{metrics['grad_norm']:g}; samples at fault: {len(samples.at_fault)} of "
            f"{len(samples.status)}",
            soft_wrap=True,
        )
        if len(samples.at_fault):
            console.print(table(samples))
        else:
            console.print("none by itself: it is what they are together, such as batch statistics")
    return 0


def table(samples: Samples) -> Table:
    """The samples at fault."""
    out = Table("sample", "input", "loss (nats)", "gradient norm", "residual", "status")
    for n in samples.at_fault:
        out.add_row(
            str(n),
            "finite" if samples.finite[n] else "not finite",
            *(f"{a[n]:.3g}" for a in (samples.loss_nats, samples.grad_norm, samples.residual)),
            Status(int(samples.status[n])).name,
        )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("replay", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
