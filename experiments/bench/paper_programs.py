"""The programs of the suite paper: what is timed of a group of rows, the states that it takes,
and its compilation with what the compiler and the counts say of it.
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jdeq
from experiments.bench.flops import program_flops
from experiments.bench.harness import MIB, Case, Result, headline, ticking
from experiments.bench.paper_rows import Row, Task
from jdeq.models import DEQTransformerCell, MDEQCell
from jdeq.training import cross_entropy_loss, make_init, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are timed in turn."""

    task: Task
    training: bool
    dtype: str
    rows: tuple[Row, ...]

    @property
    def part(self) -> str:
        """Its name on the command line."""
        return f"{self.task.part}-{self.dtype if self.training else 'inference'}"

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
