"""A training step of the DEQ-Transformer: its memory beside explicit layers of the same cell, what
the penalty adds to it, and how long it compiles; the memory of inference by Anderson's depth.
"""

import dataclasses
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jdeq
from experiments.bench.harness import MIB, Case, Result, measure
from experiments.bench.models import NEVER, Size, draw, pair, training_step
from experiments.bench.report import write
from jdeq.models import DEQTransformerLM, TransformerXL, TransformerXLConfig
from jdeq.training import equilibrium_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured: a model, budgets of its solves, numbers of layers, depths of Anderson,
    and how often a program is compiled.
    """

    size: Size
    budgets: tuple[int, ...]
    layers: tuple[int, ...]
    depths: tuple[int, ...]
    compilations: int


FULL = Plan(
    size=pair(512, 2048, (512, 2048, 1), 4, 64, 12),
    budgets=(12, 24),
    layers=(4, 8, 16, 32),
    depths=(3, 5, 8),
    compilations=3,
)
QUICK = Plan(
    size=pair(8, 12, (8, 12, 1), 2, 8, 12),
    budgets=(12, 24),
    layers=(1, 4),
    depths=(3,),
    compilations=1,
)


def implicit(size: Size, budget: int, solver: Any = jdeq.Anderson()) -> DEQTransformerLM:  # noqa: B008
    """The DEQ with so many evaluations and products."""
    return DEQTransformerLM(
        size.deq,
        solver=solver,
        gradient=jdeq.Implicit(rtol=NEVER, max_steps=budget),
        rtol=NEVER,
        max_steps=budget,
    )


def explicit(size: Size, layers: int) -> TransformerXL:
    """So many distinct layers of the same cell, of the same width."""
    parts = {field.name: getattr(size.deq, field.name) for field in dataclasses.fields(size.deq)}
    return TransformerXL(TransformerXLConfig(**parts, layers=layers))


def shapes(size: Size, model: Any) -> tuple[Any, Any, Any]:
    """The arguments of `training_step`; nothing is allocated."""
    variables, batch = jax.eval_shape(partial(draw, size, model))
    return variables["params"], variables["memory"], batch


def bare(group: str, name: str, **facts: float) -> Result:
    """A row of what is compiled, not run."""
    case = Case(group=group, name=name, make=lambda f: f, f=None, args=(), reference="")
    temp = facts.pop("temp_mib")
    return Result(case=case, facts=facts, temp_mib=temp)


def temporaries(function: Any, *args: Any) -> float:
    """MiB, by the compiler."""
    memory: Any = jax.jit(function).lower(*args).compile().memory_analysis()
    return memory.temp_size_in_bytes / MIB


def step_memory(plan: Plan, report) -> tuple[list[Result], list[str]]:
    """Temporaries of loss and gradient."""
    size = plan.size
    models: dict[str, Any] = {f"jdeq, {n}/{n}": implicit(size, n) for n in plan.budgets}
    models |= {f"explicit, {n} layers": explicit(size, n) for n in plan.layers}
    found = {}
    for name, model in models.items():
        found[name] = temporaries(training_step(model), *shapes(size, model))
        report(f"memory of a step: {name} {found[name]:.1f} MiB")
    base = next(iter(found.values()))
    rows = [
        bare(f"memory of a training step, {size.title}", name, temp_mib=mib, temp_ratio=mib / base)
        for name, mib in found.items()
    ]
    first, *others = (f"jdeq, {n}/{n}" for n in plan.budgets)
    notes = [f"memory: {name} over {first} {found[name] / base:.3f}" for name in others]
    against = ", ".join(
        f"{n} layers {base / found[f'explicit, {n} layers']:.2f}" for n in plan.layers
    )
    return rows, [*notes, f"memory: {first} over its explicit twin of {against}"]


def solve_memory(plan: Plan, report) -> tuple[list[Result], list[str]]:
    """Temporaries of a forward solve, in states: of a map that keeps nothing but its value, and of
    the model's cell.
    """
    solvers = {"Picard": jdeq.Picard()} | {
        f"{kind.__name__} depth {d}": kind(depth=d)
        for kind in (jdeq.Anderson, jdeq.RestartedAnderson)
        for d in plan.depths
    }
    size = plan.size
    variables, batch = jax.eval_shape(partial(draw, size, implicit(size, 1)))
    state = jax.ShapeDtypeStruct((size.batch, size.length * size.deq.width), jnp.float32)
    one = state.size * state.dtype.itemsize / MIB

    def elementwise(solver, x):
        return jdeq.fixed_point(
            lambda params, z, x: jnp.tanh(0.5 * z + x), (), jnp.zeros_like(x), x, solver=solver
        ).z

    def cell(solver, variables, tokens):
        posed = equilibrium_of(implicit(size, 1), variables, tokens, mutable=["memory"])
        return jdeq.fixed_point(
            posed.f, posed.params, posed.z0, posed.x, solver=solver, causal=True
        ).z

    rows, notes = [], []
    for title, solve, args in (
        ("tanh(z / 2 + x)", elementwise, (state,)),
        ("the DEQ-Transformer's cell", cell, (variables, batch[0])),
    ):
        group = f"memory of a forward solve of {title}, a state of {one:.3g} MiB"
        found = {name: temporaries(partial(solve, s), *args) for name, s in solvers.items()}
        rows += [bare(group, name, temp_mib=m, states=m / one) for name, m in found.items()]
        parts = ", ".join(f"{name} {mib / one:.1f}" for name, mib in found.items())
        notes.append(f"temporaries of a forward solve of {title}, in states: {parts}")
        report(notes[-1])
    return rows, notes


STEP, PENALISED = "step", "step with the penalty"
VALUE, GRADIENT = "the penalty alone", "the penalty and its gradient alone"
PRODUCTS = 10


def bare_products(f):
    """`PRODUCTS` products with the transposed Jacobian of f, one after the other."""

    def run(params, z, x):
        _, product = jax.vjp(lambda z: f(params, z, x), z)
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: product(v)[0], z)

    return run


def penalty_cases(plan: Plan) -> list[Case]:
    """A step with and without, the penalty alone and bare products, all at the same state."""
    size, budget = plan.size, plan.budgets[0]
    model = implicit(size, budget)
    variables, batch = draw(size, model)
    known = equilibrium_of(model, variables, batch[0], mutable=["memory"])
    step = (variables["params"], variables["memory"], batch)
    posed = (known.params, known.z, known.x)
    key = jax.random.key(0)

    def penalty(f):
        return lambda params, z, x: jdeq.jacobian_penalty(f, params, z, x, key).mean()

    group = f"Jacobian penalty, {size.title}, {budget} evaluations and products"
    shared: dict[str, Any] = {"group": group, "reference": STEP}
    return [
        Case(name=STEP, make=partial(training_step, model), f=None, args=step, **shared),
        Case(
            name=PENALISED,
            make=partial(training_step, model, penalize=True),
            f=None,
            args=step,
            **shared,
        ),
        Case(name=VALUE, make=penalty, f=known.f, args=posed, **shared),
        Case(
            name=GRADIENT,
            make=lambda f: jax.value_and_grad(penalty(f)),
            f=known.f,
            args=posed,
            **shared,
        ),
        Case(
            name=f"{PRODUCTS} backward products",
            make=bare_products,
            f=known.f,
            args=posed,
            **shared,
        ),
    ]


def penalty_notes(results: list[Result]) -> list[str]:
    """Times in bare backward products, from the medians of the paired rounds; memory."""
    step, penalised, value, gradient, products = results
    seconds = statistics.median(products.seconds) / PRODUCTS
    added = statistics.median(b - a for a, b in zip(step.seconds, penalised.seconds, strict=True))
    alone = {
        "without its gradient": statistics.median(value.seconds),
        "with its gradient into the parameters": statistics.median(gradient.seconds),
    }
    parts = ", ".join(f"{name} {t / seconds:.1f}" for name, t in alone.items())
    counts = ", ".join(
        f"{r.counts['evaluations']} evaluations, {r.counts['products']} products and "
        f"{r.counts['jvps']} jvps {name}"
        for r, name in zip((value, gradient), alone, strict=True)
    )
    return [
        f"the penalty adds {1e3 * added:.2f} ms to a step, {added / seconds:.1f} backward products "
        f"of {1e3 * seconds:.2f} ms; alone it takes {parts}",
        f"the penalty takes {counts}",
        f"temporaries of a step with the penalty over those without: "
        f"{penalised.temp_mib / step.temp_mib:.3f}",
    ]


def compile_times(plan: Plan, report) -> tuple[list[Result], list[str]]:
    """A step of the DEQ and of one explicit layer, in turn, every time from fresh functions."""
    size = plan.size
    models = {"jdeq": implicit(size, plan.budgets[0]), "explicit, 1 layer": explicit(size, 1)}
    traced: dict[str, list[float]] = {name: [] for name in models}
    compiled: dict[str, list[float]] = {name: [] for name in models}
    kept: dict[str, float] = {}
    given = {name: shapes(size, model) for name, model in models.items()}
    config: Any = jax.config
    cached = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    try:
        for _ in range(plan.compilations):
            for name, model in models.items():
                jax.clear_caches()
                start = time.perf_counter()
                lowered = jax.jit(training_step(model)).lower(*given[name])
                between = time.perf_counter()
                program: Any = lowered.compile()
                traced[name].append(between - start)
                compiled[name].append(time.perf_counter() - between)
                kept[name] = program.memory_analysis().temp_size_in_bytes / MIB
                report(f"compile {name}: {traced[name][-1]:.2f} + {compiled[name][-1]:.2f} s")
    finally:
        config.update("jax_enable_compilation_cache", cached)
    rows, middle = [], {}
    for name in models:
        first, second = statistics.median(traced[name]), statistics.median(compiled[name])
        row = bare(
            f"compile time of a training step, {size.title}, median of {plan.compilations}", name,
            temp_mib=kept[name], trace_seconds=first,
        )  # fmt: skip
        row.compile_seconds = second
        rows.append(row)
        both = [a + b for a, b in zip(traced[name], compiled[name], strict=True)]
        middle[name] = (first, second, statistics.median(both))
    ratio = [a / b for a, b in zip(*middle.values(), strict=True)]
    return rows, [
        f"compile time over that of one explicit layer: {ratio[2]:.2f}; tracing and lowering "
        f"{ratio[0]:.2f}, XLA {ratio[1]:.2f}"
    ]


def run(*, out: Path, rounds: int, quick: bool) -> None:
    """Measure everything in one process and write the report to ``out``."""
    report = partial(print, flush=True)
    plan = QUICK if quick else FULL
    rows, notes = [], []
    for part in (compile_times, step_memory, solve_memory):
        more, said = part(plan, report)
        rows, notes = rows + more, notes + said
    cases = penalty_cases(plan)
    penalised = measure(cases, rounds=rounds, report=report)
    notes += penalty_notes(penalised)
    settings = {"rounds": rounds, "quick": quick}
    write(out, "training", [*rows, *penalised], notes, settings, [cases[0].group])
    print((out / "table.md").read_text())
