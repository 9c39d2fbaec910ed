"""What a causal solve costs and what leaks without: ``python -m experiments.leak --workdir DIR``.

Solvers that mix, search or stop over a whole sequence let later tokens change earlier outputs at
any finite budget. For a trained language model: quality and evaluations with the causal solve and
with each sequence as one sample, and how far the log-probabilities of the first half of a window
move when the tokens of the second half are replaced. Unless the stops or windows are chosen, what
is printed is also kept in leak.json of DIR, for the report; the run itself is left as it was.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments import stopping, trained, workdir
from experiments.build import Run
from experiments.cli import command, timed
from experiments.config import ConfigError
from experiments.provenance import provenance
from experiments.tables import markdown_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train on text."""
    budgets: tuple[int, ...] | None = None
    """Hard stops after so many evaluations; None: those of the run's report."""
    rtols: tuple[float, ...] | None = None
    """Tolerances; None: those of the run's report."""
    windows: int = 8
    """Test windows in which tokens are replaced."""


def run(arguments: Arguments) -> int:
    """Restore, measure, write, print a Markdown table."""
    console = Console(highlight=False, stderr=True)
    loaded, restored = trained.load(arguments.workdir, console)
    if not hasattr(loaded.model, "causal"):
        raise ConfigError("workdir must hold a run of a model that can solve causally")
    if arguments.windows < 1:
        raise ConfigError(f"windows must be >= 1; got {arguments.windows}")
    variables = restored.state.averaged_variables
    stops = trained.stops(loaded, arguments.budgets, arguments.rtols)
    rows = []
    tell = timed(functools.partial(console.print, soft_wrap=True))
    for causal in (True, False):
        model = loaded.model.clone(causal=causal)
        for row in stopping.evaluate_at(model, variables, loaded.task, **stops, say=tell):
            options = stopping.stop_options(model, row)
            moved = _moved(loaded, model.clone(**options), variables, arguments.windows)
            moved = {"leak_mean": float(moved.mean()), "leak_max": float(moved.max())}
            rows.append({"causal": causal, **row, **moved})
    if not rows:
        raise ConfigError("budgets and rtols must leave a place to stop at; got none")
    found = {"quality": loaded.task.quality, "rows": rows, "provenance": provenance()}
    if arguments == Arguments(workdir=arguments.workdir):
        workdir.write_text(arguments.workdir / "leak.json", json.dumps(found, indent=1) + "\n")
    print(markdown_of(shown(found)))
    return 0


def shown(found: dict[str, Any]) -> list[dict[str, str]]:
    """What leak.json holds, as the rows of a table."""
    quality = found["quality"]
    return [
        {
            "solve": "causal" if row["causal"] else "whole sequence",
            "stop": row["stop"],
            quality.replace("_", " "): f"{row[quality]:.4f}",
            "mean nfe": f"{row['nfe_forward']:.2f}",
            "leak, mean (nats)": f"{row['leak_mean']:.1e}",
            "leak, largest (nats)": f"{row['leak_max']:.1e}",
        }
        for row in found["rows"]
    ]


def _moved(loaded: Run, model: Any, variables: dict[str, Any], windows: int) -> np.ndarray:
    """Changes of the log-probabilities before the replaced tokens, in nats."""
    tokens = jnp.asarray(loaded.task.test_inputs(windows))
    half = tokens.shape[1] // 2
    others = tokens.at[:, half:].set((tokens[:, half:] + 1) % loaded.task.classes)

    @jax.jit
    def log_probs(variables, tokens):
        outputs: Any = model.apply(variables, tokens)
        return jax.nn.log_softmax(outputs[0])[:, :half]

    return np.abs(log_probs(variables, tokens) - log_probs(variables, others))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("leak", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
