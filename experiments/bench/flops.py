"""How many floating-point operations a program takes: those of its matrix products and
convolutions, its loops as often as they run.

XLA's count of a whole program, as `jdeq.training.count_flops` uses it, has the body of a loop once,
and the plug-ins of some accelerators do not count at all. Here the program is read: what each
product takes follows from its shapes, and how often it runs from the loops around it. That also
holds for the loops of a softmax, and for gradient rules that do not report what they do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


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
        if name in _COUNTS:
            total += _COUNTS[name](*(v.aval.shape for v in equation.invars), params)
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


def _dot(left: tuple[int, ...], right: tuple[int, ...], params: dict[str, Any]) -> float:
    """Of a product: a multiplication and an addition for each pair of entries that meet."""
    (_, contracted), (_, batch) = params["dimension_numbers"]
    free = [size for axis, size in enumerate(right) if axis not in (*contracted, *batch)]
    return 2.0 * math.prod(left) * math.prod(free)


def _convolution(left: tuple[int, ...], right: tuple[int, ...], params: dict[str, Any]) -> float:
    """The same of a convolution; what falls on padding, or between the entries of a dilated input,
    does not count.
    """
    numbers = params["dimension_numbers"]
    outputs, inputs, *kernel = (right[axis] for axis in numbers.rhs_spec)
    pairs = 2.0 * left[numbers.lhs_spec[0]] * inputs * outputs / params["batch_group_count"]
    for k, (axis, taps) in enumerate(zip(numbers.lhs_spec[2:], kernel, strict=True)):
        dilation, low = params["lhs_dilation"][k], params["padding"][k][0]
        stretched = dilation * (left[axis] - 1) + 1
        reach = params["rhs_dilation"][k] * (taps - 1) + 1
        stride = params["window_strides"][k]
        positions = (low + stretched + params["padding"][k][1] - reach) // stride + 1
        # [positions, taps]: where each tap falls on the input
        at = np.arange(positions)[:, None] * stride
        at = at + np.arange(taps) * params["rhs_dilation"][k] - low
        pairs *= np.sum((at >= 0) & (at < stretched) & (at % dilation == 0))
    return float(pairs)


_COUNTS: dict[str, Callable[..., float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
