"""The fixed-point problem inside a model, taken out so that it can be looked at."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from jdeq.linen import DEQ, initial_state

PyTree = Any


class Equilibrium(NamedTuple):
    """``z = f(params, z, x)`` from ``z0`` as a model's DEQ poses it, and the z it returned."""

    f: Callable[[PyTree, PyTree, PyTree], PyTree]
    params: PyTree
    z0: PyTree
    x: PyTree
    z: PyTree


class Solve(NamedTuple):
    """A DEQ that a model called, and the problem it posed."""

    deq: DEQ
    problem: Equilibrium


def equilibrium_of(
    model: nn.Module, variables: dict[str, PyTree], *inputs: Any, mutable: Sequence[str] = ()
) -> Equilibrium:
    """The problem of the first `jdeq.linen.DEQ` that ``model(*inputs)`` calls; without dropout.

    Pure: inside jit the parts are tracers of the same trace.

    Args:
      mutable: collections that the model may write; "memory" is the one that takes part only then.
    Raises:
      ValueError: if the model calls no DEQ.
    Cost: one evaluation of the model; jit drops what is not used of it.
    """
    found = solves_of(model, variables, *inputs, mutable=mutable)
    if not found:
        raise ValueError("jdeq.training.equilibrium_of: the model calls no jdeq.linen.DEQ")
    return found[0].problem


def solves_of(
    model: nn.Module, variables: dict[str, PyTree], *inputs: Any, mutable: Sequence[str] = ()
) -> list[Solve]:
    """As `equilibrium_of`, of all that the model calls, in order."""
    found: list[Solve] = []

    def watch(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if isinstance(context.module, DEQ) and context.method_name == "__call__":
            cell, params = context.module.cell.unbind()
            x = args[0]
            z0 = initial_state(cell, x)
            problem = Equilibrium(lambda p, z, x: cell.apply(p, z, x), params, z0, x, out.z)
            found.append(Solve(context.module, problem))
        return out

    with nn.intercept_methods(watch):
        model.apply(variables, *inputs, mutable=list(mutable))
    return found
