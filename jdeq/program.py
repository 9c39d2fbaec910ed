"""Whether two traced programs are the same, in what their text does not show.

A jaxpr's text names neither the constants that nested jits hold nor the functions behind custom
derivative rules and callbacks. In doubt the answer is no: the price is a compilation.
"""

import functools
import types
from typing import Any

import jax
import numpy as np


def same_program(a: Any, b: Any) -> bool:
    """Whether two jaxprs with the same text hold the same constants and functions."""
    return len(a.eqns) == len(b.eqns) and all(
        _same(list(one.params.values()), list(two.params.values()))
        for one, two in zip(a.eqns, b.eqns, strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, jax.Array | np.ndarray):
        return False
    if hasattr(a, "consts") and hasattr(a, "jaxpr"):
        return _same(a.consts, b.consts) and same_program(a.jaxpr, b.jaxpr)
    if hasattr(a, "eqns"):
        return same_program(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, types.FunctionType):
        return a.__code__ is b.__code__ and _same(_held(a), _held(b))
    if isinstance(a, functools.partial):
        return _same([a.func, a.args, a.keywords], [b.func, b.args, b.keywords])
    if hasattr(a, "rule"):  # how JAX wraps one for vmap
        return _same(a.rule, b.rule)
    if hasattr(a, "transforms"):  # how JAX wraps a rule that it will trace later
        made, other = ([first for first, *_ in wrapped.transforms] for wrapped in (a, b))
        return _same([a.f, made], [b.f, other])
    if type(a).__module__.startswith("jax._src.interpreters"):
        return True  # the trace that met the function: no part of the program
    try:
        return bool(a == b)
    except Exception:  # whatever a foreign __eq__ raises, it did not say that they are the same
        return False


def _held(function: types.FunctionType) -> list[Any]:
    """The values a function closes over, without the memory that JAX keeps in its own."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    internal = function.__module__.startswith("jax._src")
    if internal:
        cells = [value for value in cells if type(value) not in (dict, object)]
    return [*cells, function.__defaults__, function.__kwdefaults__]
