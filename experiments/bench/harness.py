"""Counting, compiling and interleaved timing. Knows nothing of what the cases compute."""

import dataclasses
import math
import os
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import linear_call

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One timed function.

    Args:
      group: heading it is reported under; ratios are taken within it.
      name: unique in its group.
      make: ``make(f)`` returns the function to time; called again with a
        counting f in the counting pass.
      f: the map given to ``make``; None: that leaves it aside, as for a whole model, and nothing is
        counted.
      args: its arguments, arrays only.
      reference: name of the case in the same group that its ratio is taken to.
      check: turns its output into the facts reported beside the times.
      jitted: False for a function that is no program of jax: it is called as it is, and has neither
        memory nor counts.
    """

    group: str
    name: str
    make: Callable[[Any], Callable]
    f: Callable | None
    args: tuple
    reference: str
    check: Callable[[Any], dict[str, float]] = lambda output: {}
    jitted: bool = True


@dataclasses.dataclass(kw_only=True)
class Result:
    """What was measured of a case; ``error`` says why nothing was, if so."""

    case: Case
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = math.nan
    temp_mib: float = math.nan
    argument_mib: float = math.nan
    calls_per_round: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)
    error: str = ""


def ticking(counts: dict[str, int]) -> Callable[[Any], Any]:
    """The identity on a state, which adds up at run time, by a callback each, how often it is
    evaluated, pushed forward and pulled back; differentiable, but not under vmap.
    """

    def add(kind):
        counts[kind] = counts.get(kind, 0) + 1

    @jax.custom_jvp
    def tick(z):
        jax.debug.callback(lambda: add("evaluations"))
        return z

    def tangent(_, t):
        jax.debug.callback(lambda: add("jvps"))
        return t

    def cotangent(_, t):
        jax.debug.callback(lambda: add("products"))
        return t

    @tick.defjvp
    def _(primals, tangents):
        return tick(*primals), linear_call(tangent, cotangent, (), *tangents)

    return tick


def counted(f: Callable, counts: dict[str, int]) -> Callable:
    """f(params, z, x) that adds up its evaluations, jvps and backward products in z."""
    tick = ticking(counts)
    return lambda params, z, x: f(params, tick(z), x)


def count(make: Callable, f: Callable, args: tuple) -> dict[str, int]:
    """Evaluations and products of one call of ``make(f)(*args)``."""
    return _counting(make, f, args)()


def _counting(make: Callable, f: Callable, args: tuple) -> Callable[[], dict[str, int]]:
    """`count`, compiled and not yet run."""
    counts = {"evaluations": 0, "products": 0, "jvps": 0}
    lowered = jax.jit(make(counted(f, counts))).lower(*args)
    # It runs once: the compiler need not take its time.
    compiled = lowered.compile({"xla_backend_optimization_level": "0"})

    def run():
        jax.block_until_ready(compiled(*args))
        jax.effects_barrier()
        return counts

    return run


def headline(error: Exception) -> str:
    """What happened, in a line; runtime errors carry the raiser's own message further down."""
    lines = str(error).strip().splitlines() or [""]
    raised = [line for line in lines if re.match(r"\S*Error: ", line)]
    return f"{type(error).__name__}: {(raised or lines)[-1 if raised else 0][:120]}"


@dataclasses.dataclass(kw_only=True)
class _Prepared:
    """A compiled case; without ``run`` where the result has an error."""

    result: Result
    run: Callable | None = None
    count: Callable[[], dict[str, int]] | None = None


def _compile(case: Case, temp_limit_mib: float) -> _Prepared:
    """The case, and where it is counted the program that counts."""
    result = Result(case=case)
    prepared = _Prepared(result=result)
    try:
        run: Any = case.make(case.f)
        if case.jitted:
            start = time.perf_counter()
            run = jax.jit(run).lower(*case.args).compile()
            result.compile_seconds = time.perf_counter() - start
            if (memory := run.memory_analysis()) is not None:  # some devices do not say
                result.temp_mib = memory.temp_size_in_bytes / MIB
        if result.temp_mib > temp_limit_mib:
            result.error = f"not run: needs {result.temp_mib:.0f} MiB of temporaries"
            return prepared
        prepared.run = run
    except Exception as error:  # an entry that fails is a finding: it is reported by name
        result.error = headline(error)
        return prepared
    try:
        if case.f is not None:
            prepared.count = _counting(case.make, case.f, case.args)
    except Exception as error:  # timed all the same
        result.error = f"not counted: {headline(error)}"
    return prepared


def _check(prepared: _Prepared, round_seconds: float) -> None:
    """Run a case for the first times: its facts and counts, and how often a round calls it."""
    result, run, args = prepared.result, prepared.run, prepared.result.case.args
    counting, prepared.count = prepared.count, None  # run once, and not kept on the device
    if run is None:
        return
    try:
        result.facts = result.case.check(jax.device_get(run(*args)))
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        once = time.perf_counter() - start
    except Exception as error:  # out of memory, say
        result.error, prepared.run = headline(error), None
        return
    result.calls_per_round = max(1, min(100, math.ceil(round_seconds / once)))
    try:
        if counting is not None:
            result.counts = counting()
    except Exception as error:  # timed all the same
        result.error = f"not counted: {headline(error)}"


def side_by_side() -> int:
    """How many programs are compiled, or run untimed, at a time: one on a CPU, which does both."""
    return 1 if jax.default_backend() == "cpu" else os.cpu_count() or 1


def measure(
    cases: list[Case],
    *,
    rounds: int,
    round_seconds: float = 0.02,
    temp_limit_mib: float = 1024.0,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Time all cases in turn, ``rounds`` times over, in a fresh order each round.

    A case is called often enough to fill ``round_seconds`` a round. A case that needs more than
    ``temp_limit_mib`` of temporaries is compiled, not run. On an accelerator the cases are compiled
    side by side, which their ``compile_seconds`` contain.
    """
    compiled: list[_Prepared] = []
    with ThreadPoolExecutor(side_by_side()) as pool:
        for prepared in pool.map(partial(_compile, temp_limit_mib=temp_limit_mib), cases):
            compiled.append(prepared)
            name, error = prepared.result.case.name, prepared.result.error
            report(f"compiled {len(compiled)}/{len(cases)}: {name} {error}".rstrip())
    results = [prepared.result for prepared in compiled]
    calls = {}
    for index, (case, prepared) in enumerate(zip(cases, compiled, strict=True)):
        _check(prepared, round_seconds)
        error = prepared.result.error
        report(f"[{index + 1}/{len(cases)}] {case.group}: {case.name} {error}".rstrip())
        if prepared.run is not None:
            calls[index] = partial(_run, prepared.run, case.args)
    in_turn(calls, results, rounds=rounds, report=report)
    return results


def _run(function: Callable, args: tuple) -> None:
    jax.block_until_ready(function(*args))


def in_turn(
    calls: dict[int, Callable[[], None]],
    results: list[Result],
    *,
    rounds: int,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Time the calls in turn, ``rounds`` times over, in a fresh order each round, into
    ``results`` of their keys; a call returns when its work is done.
    """
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for round_index in range(rounds):
        shuffle(order)
        for index in order:
            times = results[index].calls_per_round
            start = time.perf_counter()
            for _ in range(times):
                calls[index]()
            results[index].seconds.append((time.perf_counter() - start) / times)
        report(f"round {round_index + 1}/{rounds}")


def quartiles(values) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile)"""
    low, middle, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    return float(middle), float(low), float(high)


def ratios(result: Result, results: list[Result]) -> list[float]:
    """Time over that of the reference case, round by round; empty when that one failed."""
    for other in results:
        if (other.case.group, other.case.name) == (result.case.group, result.case.reference):
            return [a / b for a, b in zip(result.seconds, other.seconds, strict=False)]
    raise ValueError(
        f"experiments.bench: {result.case.group} has no case {result.case.reference!r}"
    )
