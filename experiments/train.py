"""Train a model: ``python -m experiments.train NAME --workdir DIR [--field value ...]``.

NAME is a file of experiments/configs/; ``NAME --help`` lists its fields. The same command again
goes on from the last checkpoint, or shows the report of a run that is finished.
"""

import dataclasses
import functools
import importlib
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import tyro
from jax.experimental import multihost_utils
from rich.console import Console

from experiments import launch, run_report, stopping, workdir
from experiments.build import Run, build, eval_step
from experiments.cli import guarded, timed
from experiments.config import ConfigError, ExperimentConfig
from experiments.config_files import load_run, run_names
from experiments.provenance import commit
from experiments.spectrum import spectrum_hook
from jdeq.training import (
    CheckpointError,
    Checkpoints,
    JsonLines,
    Loop,
    NonFiniteError,
    Phase,
    Profile,
    Sink,
    StopRequest,
    TensorBoard,
    Terminal,
    TrainState,
    Watch,
    count_flops,
    peak_flops,
)
from jdeq.training.metrics import Metrics

Hook = Callable[[TrainState], tuple[str, Metrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line after NAME."""

    workdir: pathlib.Path
    """Directory of this run: configuration, checkpoints, metrics, report."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")]


def parse(argv: Sequence[str]) -> tuple[str, Arguments]:
    """The run's name, and its configuration with the command line's changes.

    Raises:
      ConfigError: for an unknown or missing name. Unknown fields exit through tyro, with the
        nearest ones printed.
    """
    names = f"runs: {', '.join(run_names())}"
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{names}")
        raise SystemExit(0)
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"the name of a run comes first; {names}")
    name, *rest = argv
    config = load_run(name)
    arguments = tyro.cli(
        Arguments,
        args=rest,
        default=Arguments(workdir=tyro.MISSING, config=config),
        prog=f"python -m experiments.train {name}",
        config=(tyro.conf.AvoidSubcommands,),  # the run says which of the models it trains
        description=importlib.import_module(f"experiments.configs.{name}").__doc__,
    )
    return name, arguments


def train(config: ExperimentConfig, directory: pathlib.Path, *, again: str) -> int:
    """Train, or go on, or report a finished run; ``again`` is the command that resumes it."""
    begin = time.perf_counter()
    commit()  # kept for the report: the checkout may be another when the run ends
    primary = jax.process_index() == 0
    console = Console(highlight=False, quiet=not primary)
    run = build(config).spread()
    claim(directory, config)
    finished = workdir.read_report(directory)
    if finished is not None:
        console.print(f"{directory}: this run is finished already; its report:")
        run_report.show(finished, console)
        return 0
    say = functools.partial(console.print, soft_wrap=True)
    checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, report=say)
    with StopRequest() as stop:
        restored = checkpoints.restore(run.abstract_state())
        state = restored.state if restored else run.initial_state()
        start = int(state.step)
        if restored is None and checkpoints.begun:
            raise CheckpointError(
                f"{directory}: a checkpoint was saved, but there is none in "
                f"{checkpoints.directory}; nothing was changed. Put it back, or choose another "
                "--workdir"
            )
        about = {"data": run.task.data, "train_seconds": 0.0}
        extra = restored.extra if restored else about
        begin -= extra["train_seconds"]  # of earlier parts of the run
        if extra["data"] != run.task.data:
            raise CheckpointError(
                f"{directory} was trained on other data: {extra['data']}, here it is "
                f"{run.task.data} (another version of Python has another standard library); "
                "nothing was changed"
            )
        if restored:
            say(f"resuming {directory} at step {start} of {run.total_steps}")
        size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        pretrain = run.config.pretrain.steps
        say(
            f"{size:,} parameters on {jax.device_count()} x {jax.devices()[0].device_kind}; "
            f"{run.total_steps} steps" + (f", {pretrain} of pre-training" if pretrain else "")
        )
        if run.implicit:
            say(
                "nfe and res: evaluations a sample and largest relative residual, forward/backward "
                "(backward 0 while nothing is solved for)"
            )
        sinks: list[Sink] = []
        if primary:
            sinks = [
                JsonLines(directory / workdir.METRICS_FILE, start_step=start),
                TensorBoard(directory / workdir.TENSORBOARD, start_step=start),
                Terminal(
                    total_steps=run.total_steps,
                    start_step=start,
                    steps_per_epoch=run.task.batches.batches_per_epoch,
                    console=console,
                ),
                *([watch(run, say)] if run.implicit else []),
            ]
        try:
            state = make_loop(run, directory).run(
                state, checkpoints=checkpoints, sinks=sinks, stop=stop, extra=extra
            )
        except NonFiniteError as error:
            if not primary:
                raise
            where = workdir.write_nonfinite(directory, error.steps, config.seed)
            raise NonFiniteError(f"{error}\n{where}", error.steps) from error
        finally:
            for sink in sinks:
                sink.close()
            checkpoints.close()
        if int(state.step) < run.total_steps:
            say(
                f"{stop.name}: stopped after step {int(state.step)} of {run.total_steps} and saved "
                f"it in {checkpoints.directory}.\nResume with: {again}"
            )
            return 0
    assert run.layout is not None
    # What is reported on, whole and here: not the optimiser, which may be too large for that.
    params = state.averaged_variables["params"]
    state = run.layout.local(state._replace(params=params, opt_state=()))
    if primary:
        run = dataclasses.replace(run, layout=None)
        seconds = extra["train_seconds"]
        say("the report:")
        report = run_report.write(
            run, state, directory, train_seconds=seconds, begin=begin, say=timed(say)
        )
        run_report.show(report, console)
    multihost_utils.sync_global_devices("report")
    return 0


def claim(directory: pathlib.Path, config: ExperimentConfig) -> None:
    """`workdir.claim` by the first process, then by the others, who find it claimed."""
    for turn in (True, False):
        if turn == (jax.process_index() == 0):
            workdir.claim(directory, config)
        multihost_utils.sync_global_devices(f"claim {turn}")


def watch(run: Run, say: Callable[[str], None]) -> Watch:
    """Looks out for rises in the training of ``run``, once it solves for the equilibrium."""
    per_step = stopping.evaluations_per_step(run.model.solver)
    pretrain, loop = run.config.pretrain.steps, run.config.loop
    return Watch(
        budget=per_step and per_step * run.model.max_steps,
        # the first record after a pre-training may sum up steps of it
        start=pretrain + loop.log_every - 1 if pretrain else 0,
        report=say,
    )


def make_loop(run: Run, directory: pathlib.Path | None = None) -> Loop:
    """The loop of ``run``: pre-training, then the equilibrium, with its hooks; ``directory`` is
    where a trace goes, if one is asked for.
    """
    config = run.config.loop
    items, items_per_step = run.task.items
    jitter = config.budget_jitter
    models = [run.model]
    if jitter:
        budgets = range(run.model.max_steps - jitter, run.model.max_steps + jitter + 1)
        models = [run.model.clone(max_steps=budget) for budget in budgets]
    steps = [run.train_step(model) for model in models]
    if not run.config.mesh.local_stop:  # of which XLA counts one part
        steps = [count_flops(step, m) for step, m in zip(steps, models, strict=True)]
    phases = [Phase(until=run.total_steps, steps=steps, seed=run.config.seed)]
    if run.config.pretrain.steps:
        step = run.train_step(run.pretrain_model)
        pretrain = Phase(until=run.config.pretrain.steps, steps=[step])
        phases.insert(0, pretrain)
    tested = Tested(run)
    hooks: list[tuple[int, Hook]] = [(config.test_every, tested.hook)]
    if run.implicit:
        hooks.append((config.spectrum_every, spectrum_hook(run)))
    profile = None
    if directory is not None and config.profile_from is not None:
        profile = Profile(
            directory / workdir.PROFILE, start=config.profile_from, steps=config.profile_steps
        )
    return Loop(
        phases=phases,
        batch_at=run.batch_at,
        items=items,
        items_per_step=items_per_step,
        schedule=run.schedule,
        hooks=hooks,
        log_every=config.log_every,
        save_every=config.save_every,
        max_skipped=config.max_skipped,
        learning_rate=run.learning_rate,
        quality=tested.quality,
        restarts=getattr(run.task.batches, "starts", lambda position: False),
        profile=profile,
        peak_flops=config.peak_flops or peak_flops(jax.devices()[0]),
    )


class Tested:
    """Loss, quality, evaluations and residual on the test examples, with the training solver and
    the averaged parameters where the run has them.
    """

    def __init__(self, run: Run):
        self._task = run.task
        self._step = eval_step(run.model, run.task, layout=run.layout)
        self._latest: tuple[int, Metrics] = (-1, {})

    def hook(self, state: TrainState) -> tuple[str, Metrics]:
        """For the loop."""
        measures = self._task.evaluate(self._step, state.averaged_variables)
        self._latest = int(state.step), measures
        return "test", measures

    def quality(self, state: TrainState) -> float | None:
        """By which the best of the checkpoints that were tested is found: the larger the better."""
        step, measures = self._latest
        if step != int(state.step):
            return None
        sign = 1 if self._task.quality in ("accuracy", "mean_iou") else -1
        return sign * measures[self._task.quality]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def run() -> int:
        _, arguments = parse(argv)
        again = shlex.join(["python", "-m", "experiments.train", *argv])
        return train(arguments.config, arguments.workdir, again=again)

    return guarded(run)


if __name__ == "__main__":
    launch.connect()
    code = main()
    if code and jax.process_count() > 1:
        # The others may be waiting for this process, and an orderly end for them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
