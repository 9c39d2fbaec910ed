"""The published models at their size, on random inputs: a training step and inference of the
DEQ-Transformer beside Transformer-XL and of the MDEQ beside ResNet-101.

Needs jax, flax, optax and what ``import jdeq.training`` takes. Full sizes where there is an
accelerator, reduced ones on a CPU. The programs of a task are compiled side by side, then each
group is timed and reported before the next one starts.
"""

import dataclasses
import importlib.util
import math
import os
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jdeq
from experiments.bench import paper_rows
from experiments.bench.flops import program_flops
from experiments.bench.harness import (
    MIB,
    Case,
    Result,
    headline,
    in_turn,
    quartiles,
    ratios,
    ticking,
)
from experiments.bench.paper_rows import Row, Task
from experiments.bench.report import write
from jdeq.models import DEQTransformerCell, MDEQCell
from jdeq.training import cross_entropy_loss, make_init, make_train_step, peak_flops

ROUNDS = 8
TIME_LIMIT = 420.0
"""Seconds after which no further group is started."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are timed in turn."""

    task: Task
    training: bool
    dtype: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Its heading."""
        what = "training step" if self.training else "inference"
        return f"{self.task.name}, {what}, {self.dtype}, {self.task.size}"


def groups_of(task: Task, dtypes: tuple[str, ...]) -> list[Group]:
    """All rows trained in the first precision; the main ones in the others, and inference in the
    first.
    """
    main = tuple(row for row in task.rows if row.main)
    training = [
        Group(task=task, training=True, dtype=dtype, rows=main if k else task.rows)
        for k, dtype in enumerate(dtypes)
    ]
    return [*training, Group(task=task, training=False, dtype=dtypes[0], rows=main)]


def program(group: Group, row: Row) -> Any:
    """What is timed, jitted: ``(state, batch, weight) -> (state, metrics)`` as training has it, the
    state donated; ``(state, batch) -> outputs``.
    """
    dtype = None if group.dtype == "float32" else group.dtype
    if group.training:
        rule = getattr(row.model, "gradient", None)
        loss = cross_entropy_loss(
            row.model,
            probe_backward=rule is not None and rule.has_probe,
            by_labels=group.task.by_labels,
        )
        return make_train_step(loss, group.task.optimizer, compute_dtype=dtype)

    def cast(leaf):
        floating = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    def forward(state, batch):
        labels = {"labels": batch.labels} if group.task.by_labels else {}
        (out, _), _ = row.model.apply(
            {"params": jax.tree.map(cast, state.params), **state.model_state},
            cast(batch.inputs),
            mutable=["memory"],
            **labels,
        )
        return out

    return jax.jit(forward)


def trace(group: Group, row: Row, state: Any, batch: Any) -> Any:
    """The program, traced for these shapes or arrays."""
    if group.training:
        weight = jax.ShapeDtypeStruct((), jnp.float32)
        return program(group, row).trace(state, batch, weight, penalize=row.penalize)
    return program(group, row).trace(state, batch)


class States:
    """The training states of a task by name: shapes at once, arrays when they are first needed.

    A training step consumes the one it is given: the next row goes on from what it returned.
    Budgets are fixed, so that nothing that is timed depends on the values.
    """

    def __init__(self, task: Task, pool: ThreadPoolExecutor):
        models = {row.state: row.model for row in task.rows}
        lowered = {name: pool.submit(self._lower, task, model) for name, model in models.items()}
        self._compiled = {
            name: pool.submit(lambda f: f.result().compile(), future)
            for name, future in lowered.items()
        }
        self.lowered = lowered
        self.arrays: dict[str, Any] = {}

    @staticmethod
    def _lower(task: Task, model: Any) -> Any:
        if hasattr(model, "gradient"):  # the solve is left out of the compiled program
            model = model.clone(solver=jdeq.Picard(), gradient=jdeq.OneStep(), max_steps=1)
        init = make_init(model, task.optimizer)
        return jax.jit(init).lower(jax.random.key(0), task.shapes().inputs)

    def shapes(self, name: str) -> Any:
        """Of a state."""
        info = self.lowered[name].result().out_info
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), info)

    def get(self, name: str, inputs: Any) -> Any:
        """The arrays, drawn anew if a step that failed has consumed them."""
        state = self.arrays.get(name)
        if state is None or any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            state = self._compiled[name].result()(jax.random.key(0), inputs)
        self.arrays[name] = state
        return state


@dataclasses.dataclass(kw_only=True)
class Program:
    """A compiled row; without ``call`` where the result has an error."""

    group: Group
    row: Row
    result: Result
    call: Any = None
    size_mib: float = 0.0


def compile_row(group: Group, row: Row, states: States, *, counting: bool) -> Program:
    """Compile, count operations and read the compiler's memory."""
    case = Case(
        group=group.title, name=row.name, make=lambda f: f, f=None, args=(),
        reference=group.task.twin,
    )  # fmt: skip
    result = Result(case=case)
    done = Program(group=group, row=row, result=result)
    try:
        state = states.shapes(row.state)
        traced = trace(group, row, state, group.task.shapes())
        trips = row.trips if group.training else row.trips[:1]
        result.facts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        result.facts["tflop"] = program_flops(traced.jaxpr, trips) / 1e12
        lowered = traced.lower()
        start = time.perf_counter()
        done.call = lowered.compile()
        result.compile_seconds = time.perf_counter() - start
        if (memory := done.call.memory_analysis()) is not None:  # some devices do not say
            result.temp_mib = memory.temp_size_in_bytes / MIB
            result.argument_mib = memory.argument_size_in_bytes / MIB
            done.size_mib = result.temp_mib + result.argument_mib
        if counting and group.training and row.trips:
            result.counts = counts = count_row(group, row)
            if row.counts not in (None, (counts["evaluations"], counts["products"])):
                result.error = f"not the evaluations and products of its budget, {row.counts}"
    except Exception as error:  # a row that fails is a finding: it is reported by name
        result.error = headline(error)
    print(f"compiled in {result.compile_seconds:.0f} s: {group.title}: {row.name} {result.error}",
          flush=True)  # fmt: skip
    return done


def count_row(group: Group, row: Row) -> dict[str, int]:
    """Evaluations of the cell, products with its transposed Jacobian and jvps of a step, counted
    by callbacks while it runs.
    """
    counts = {"evaluations": 0, "products": 0, "jvps": 0}
    tick = ticking(counts)

    def watch(call, args, kwargs, context):
        cell = isinstance(context.module, DEQTransformerCell | MDEQCell)
        if cell and context.method_name == "__call__":
            args = (tick(args[0]), *args[1:])
        return call(*args, **kwargs)

    batch = jax.tree.map(jnp.asarray, group.task.draw())
    state = make_init(row.model, group.task.optimizer)(jax.random.key(0), batch.inputs)
    with nn.intercept_methods(watch):
        counting = trace(group, row, state, batch).lower().compile()
    jax.block_until_ready(counting(state, batch, jnp.float32(0)))
    jax.effects_barrier()
    return counts


def run_once(done: Program, states: States, batch: Any) -> Any:
    """One step, or one forward pass, waited for; its metrics or outputs."""
    name = done.row.state
    state = states.get(name, batch.inputs)
    if not done.group.training:
        return jax.block_until_ready(done.call(state, batch))
    states.arrays[name], metrics = jax.block_until_ready(
        done.call(state, batch, jnp.float32(done.row.penalize))
    )
    return metrics


def check(done: Program, out: Any) -> None:
    """Record an error if what came out is not finite."""
    numbers = [out["loss_nats"], out["grad_norm"]] if done.group.training else [out]
    if not all(np.isfinite(np.asarray(a, np.float32)).all() for a in jax.device_get(numbers)):
        done.result.error = "its outputs are not finite"


def first_calls(programs: list[Program], states: States, batch: Any) -> list[Program]:
    """Run each once, the smallest first, and keep those that work. The device's peak counter only
    rises: where it did, it is that of the row.
    """
    working = []
    for done in sorted(programs, key=lambda done: done.size_mib):
        if done.call is None:
            continue
        try:
            states.get(done.row.state, batch.inputs)
            before = _peak()
            check(done, run_once(done, states, batch))
            after = _peak()
            if after is not None and before is not None and after > before:
                done.result.facts["peak_mib"] = after / MIB
            working.append(done)
        except Exception as error:  # out of memory, say
            done.result.error = headline(error)
    return working


def time_group(programs: list[Program], states: States, batch: Any, rounds: int) -> None:
    """Time what works of a group, in turn."""
    working = first_calls(programs, states, batch)
    calls = {k: partial(run_once, done, states, batch) for k, done in enumerate(working)}
    in_turn(calls, [done.result for done in working], rounds=rounds)
    for done in working:  # the last step's numbers, too, have to be finite
        if not done.result.error:
            check(done, run_once(done, states, batch))


def _peak() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def summarize(programs: list[Program]) -> None:
    """Rates, utilisation and ratios of a group that was timed, into the facts; printed."""
    peak = peak_flops(jax.devices()[0])
    task = programs[0].group.task
    twin = next(d.result.facts for d in programs if d.row.name == task.twin)
    results = [done.result for done in programs]
    for result in (result for result in results if result.seconds):
        seconds, facts = quartiles(result.seconds)[0], result.facts
        facts["per_second"] = task.units / seconds
        facts["flops_ratio"] = facts["tflop"] / twin.get("tflop", math.nan)
        if peak is not None:
            facts["utilisation"] = facts["tflop"] * 1e12 / seconds / peak
        ratio = ratios(result, results)
        print(
            f"{result.case.name}: {1e3 * seconds:.2f} ms, {facts['per_second']:.0f} {task.unit} a "
            f"second, {quartiles(ratio)[0] if ratio else math.nan:.2f} x the time and "
            f"{facts['flops_ratio']:.2f} x the operations of {task.twin}",
            flush=True,
        )


def closest_note(programs: list[Program]) -> str | None:
    """The implicit row whose time is nearest to the twin's."""
    results = [done.result for done in programs]
    ratio = {
        r.case.name: quartiles(ratios(r, results))[0]
        for r in results
        if r.seconds and r.case.name != r.case.reference and ratios(r, results)
    }
    if not ratio:
        return None
    best = min(ratio, key=lambda name: abs(math.log(ratio[name])))
    return f"{results[0].case.group}: closest to {results[0].case.reference} is {best}, " + (
        f"{ratio[best]:.2f} x its time"
    )


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Measure everything in one process and write the report to ``out`` after each group."""
    began = time.perf_counter()
    on_cpu = jax.default_backend() == "cpu"
    small = quick or on_cpu
    tasks = paper_rows.quick() if quick else paper_rows.reduced() if on_cpu else paper_rows.full()
    rounds = min(rounds, ROUNDS)
    notes = [
        ("Reduced sizes, for a CPU. " if small else "")
        + "TFLOP: matrix products and convolutions, loops as often as they run; of the peak: that "
        "over time and the device's dense bfloat16 peak, in every precision.",
        "MiB: temporaries by the compiler. Device peak: everything that the process held, known "
        "where the row raised it.",
        "compile s: side by side with other rows.",
    ]
    if not importlib.util.find_spec("matplotlib"):
        notes.append("matplotlib is not installed: no plot")
    settings = {"rounds": rounds, "quick": quick, "sizes": [task.size for task in tasks]}
    measured: list[Program] = []

    def report(compiled: list[Program]) -> None:
        rows = [done.result for done in (*measured, *compiled)]
        closest = [
            note
            for title in dict.fromkeys(done.group.title for done in measured)
            if (note := closest_note([d for d in measured if d.group.title == title]))
        ]
        titles = [t for t in dict.fromkeys(r.case.group for r in rows if r.seconds)]
        write(out, "paper", rows, notes + closest, settings, titles)

    for task in tasks:
        groups = groups_of(task, ("float32",) if small else ("bfloat16", "float32"))
        with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tolerance below the dtype's resolution is meant
            states = States(task, pool)
            futures: list[Future] = [
                pool.submit(compile_row, group, row, states, counting=quick)
                for group in groups
                for row in group.rows
            ]
            compiled = [future.result() for future in futures]
        report(compiled)
        batch = jax.device_put(task.draw())
        for group in groups:
            mine = [done for done in compiled if done.group is group]
            compiled = [done for done in compiled if done.group is not group]
            if time.perf_counter() - began > TIME_LIMIT and not quick:
                for done in mine:
                    done.result.error = done.result.error or "compiled only: out of time"
            else:
                time_group(mine, states, batch, rounds)
                print(f"{group.title}, after {time.perf_counter() - began:.0f} s", flush=True)
                summarize(mine)
            measured += mine
            report(compiled)
    print((out / "table.md").read_text())
