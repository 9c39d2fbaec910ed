"""How many floating-point operations a program takes: those of its matrix products and
convolutions, its loops as often as they run.

XLA's count of a whole program, as `jdeq.training.count_flops` uses it, has the body of a loop once,
and the plug-ins of accelerators do not count at all. Here XLA counts each product alone, for the
processor, and the program is read to see how often it runs: that also holds for the loops of a
softmax, and for gradient rules that do not report what they do.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax


def program_flops(jaxpr: Any, trips: Sequence[int]) -> float:
    """Of a whole program; conditionals as their cheaper branch.

    Args:
      jaxpr: of a traced function, ``jax.jit(f).trace(...).jaxpr``.
      trips: how often each ``while`` loop runs, in the order of the program; those of a ``scan``
        are known.
    Raises:
      ValueError: if the program has another number of ``while`` loops.
    """
    remaining = list(trips)
    total = _flops(jaxpr, remaining)
    if remaining:
        raise ValueError(
            "experiments.bench.flops: trips must have one entry for each while loop; got "
            f"{list(trips)}, {len(remaining)} too many"
        )
    return total


def _flops(jaxpr: Any, trips: list[int]) -> float:
    """The same, taking the entries of ``trips`` that belong to it."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            shapes = tuple((v.aval.shape, str(v.aval.dtype)) for v in equation.invars)
            total += _product(equation.primitive, shapes, tuple(sorted(params.items())))
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"], trips)
        elif name == "while":
            if not trips:
                raise ValueError(
                    "experiments.bench.flops: trips must have one entry for each while loop; the "
                    "program has more"
                )
            total += trips.pop(0) * _flops(params["body_jaxpr"], trips)
        elif name == "cond":
            total += min(_flops(branch, trips) for branch in params["branches"])
        else:
            total += sum(_flops(part, trips) for part in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that a call runs."""
    # A custom_linear_solve carries its transpose and more, but runs its ``solve``.
    values = [getattr(value, "solve", value) for value in params.values()]
    return [
        part
        for value in values
        for part in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    ]


@functools.cache
def _product(primitive: Any, shapes: tuple, params: tuple) -> float:
    """XLA's count of one operation."""
    with jax.default_device(jax.devices("cpu")[0]):
        arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        lowered = jax.jit(lambda *a: primitive.bind(*a, **dict(params))).lower(*arguments)
        cost = lowered.cost_analysis()
    if not cost or "flops" not in cost:
        raise ValueError("experiments.bench.flops: XLA does not count for this processor")
    return cost["flops"]
