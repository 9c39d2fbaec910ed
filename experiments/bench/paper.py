"""The published models at their size, on random inputs: a training step and inference of the
DEQ-Transformer beside Transformer-XL and of the MDEQ beside ResNet-101.

Needs jax, flax, optax and what ``import jdeq.training`` takes. Full sizes where there is an
accelerator, reduced ones on a CPU. The programs of a task are compiled side by side, the first of
each model before its others, then each group is timed and reported before the next one starts.
"""

import importlib.util
import math
import os
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import paper_rows
from experiments.bench.harness import MIB, headline, in_turn, quartiles, ratios
from experiments.bench.paper_programs import Group, Program, States, compile_row, groups_of
from experiments.bench.report import write
from jdeq.training import peak_flops

ROUNDS = 8
COMPILE_LIMIT = 400.0
"""Seconds after which no further task is compiled."""
TIME_LIMIT = 540.0
"""Seconds after which no further group is timed."""


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


def all_groups(quick: bool) -> list[Group]:
    """Of all tasks, in the order in which they are measured."""
    on_cpu = jax.default_backend() == "cpu"
    tasks = paper_rows.quick() if quick else paper_rows.reduced() if on_cpu else paper_rows.full()
    dtypes = ("float32",) if quick or on_cpu else ("bfloat16", "float32")
    return [group for task in tasks for group in groups_of(task, dtypes)]


def parts(quick: bool) -> tuple[str, ...]:
    """The groups' names."""
    return tuple(group.part for group in all_groups(quick))


def compile_groups(
    groups: list[Group], states: States, pool: ThreadPoolExecutor, *, counting: bool
) -> list[Program]:
    """Side by side: the first row of each state and precision, then the others, for which the
    compiler need not try again which kernels of their convolutions and products are fast.
    """
    rows = [(group, row) for group in groups for row in group.rows]
    first = {(row.state, group.dtype): k for k, (group, row) in reversed([*enumerate(rows)])}
    leading = set(first.values())
    futures: dict[int, Future] = {}
    for wave in (leading, set(range(len(rows))) - leading):
        futures |= {k: pool.submit(compile_row, *rows[k], states, counting=counting) for k in wave}
        wait(futures.values())
    return [futures[k].result() for k in range(len(rows))]


def run(*, out: Path, rounds: int, quick: bool, only: tuple[str, ...] = ()) -> None:
    """Measure everything in one process and write the report to ``out`` after each group.

    Args:
      only: of `parts`; empty: all of them.
    """
    began = time.perf_counter()
    small = quick or jax.default_backend() == "cpu"
    chosen = [group for group in all_groups(quick) if not only or group.part in only]
    tasks = {group.task.name: group.task for group in chosen}.values()
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
    settings = {
        "rounds": rounds,
        "quick": quick,
        "sizes": [task.size for task in tasks],
        "parts": [group.part for group in chosen],
    }
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
        groups = [group for group in chosen if group.task is task]
        if time.perf_counter() - began > COMPILE_LIMIT and not quick:
            notes.append(f"{task.name}: not compiled: out of time")
            report([])
            continue
        with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tolerance below the dtype's resolution is meant
            states = States(task, pool)
            compiled = compile_groups(groups, states, pool, counting=quick)
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
