"""A map traced once, with what it captures as arguments."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
from jaxtyping import PyTree

from jdeq import tree
from jdeq.program import same_program


class Traced:
    """f traced once, with the arrays it captures as arguments: ``f((params, captured), z, x)``,
    where ``captured[which]`` are its own.

    Equal when it is the same program, so that eager calls with equal arguments compile once, also
    if the values captured have changed.
    """

    def __init__(self, f: Any, jaxpr: Any, out: Any, which: int):
        # Neither f nor what it captured is kept: this object outlives the call in a cache.
        f = getattr(f, "__code__", f)  # of functions made anew from the same text it is the same
        try:
            self._key = hash(f)
        except TypeError:  # it, or what it is hashed by, cannot be: arrays for one
            self._key = hash(type(f))
        self._jaxpr, self._out, self._which = jaxpr, out, which

    @classmethod
    def trace(
        cls, f: Any, params: PyTree, z0: PyTree, x: PyTree, which: int = 0
    ) -> tuple["Traced", list]:
        """f traced, and the arrays it captured."""
        jaxpr, out, captured = trace(f, params, z0, x)
        check_output(z0, out)
        check_placement(z0, jaxpr)
        return cls(f, jaxpr, jax.tree.structure(out), which), captured

    def __call__(self, params: PyTree, z: PyTree, x: PyTree) -> PyTree:
        params, captured = params
        out = call(self._jaxpr, self._out, captured[self._which], params, z, x)
        return tree.vary(tree.cast_like(out, z), tree.varying_axes(z))

    @functools.cached_property
    def _text(self) -> str:
        return str(self._jaxpr)

    def __hash__(self) -> int:
        return self._key

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Traced)
            and self._key == other._key
            and self._which == other._which
            and self._text == other._text
            and same_program(self._jaxpr, other._jaxpr)
        )


def trace(f: Callable[..., PyTree], *args: PyTree) -> tuple[Any, PyTree, list]:
    """The program of ``f(*args)``, its results' shapes, and the arrays that f captured."""

    # A new function each time: JAX would answer from its cache, with arrays captured earlier.
    def fresh(*args: PyTree) -> PyTree:
        return f(*args)

    closed, out = jax.make_jaxpr(fresh, return_shape=True)(*args)
    jaxpr: Any = closed.jaxpr
    if hasattr(jaxpr, "with_consts"):  # jax 0.12: one class, which would hold the constants
        jaxpr = jaxpr.with_consts([None] * len(closed.consts))
    return jaxpr, out, closed.consts


def call(jaxpr: Any, out: Any, captured: list, *args: PyTree) -> PyTree:
    """The results of a traced program, with the structure ``out``."""
    closed = jax.extend.core.ClosedJaxpr(jaxpr, captured)
    return jax.tree.unflatten(out, jax.extend.core.jaxpr_as_fun(closed)(*jax.tree.leaves(args)))


def compact_sizes(samples: int, compact: int) -> list[int]:
    """How many samples a solve goes on with when the others are done: ``samples // compact``,
    that over ``compact``, and so on while there is one; none for ``compact = 1``.
    """
    sizes = []
    while compact > 1 and samples >= compact:
        samples //= compact
        sizes.append(samples)
    return sizes


def trace_smaller(
    f: Any, params: PyTree, z0: PyTree, x: PyTree, compact: int
) -> tuple[tuple[tuple[int, "Traced"], ...], list]:
    """Fewer and fewer samples with f traced for so many, and what it captures each time."""
    programs, captured = [], []
    samples = tree.batch_shape(z0, 1)[0] if compact > 1 else 0
    for size in compact_sizes(samples, compact):
        z_part, x_part = jax.tree.map(lambda a, size=size: a[:size], (z0, x))
        try:
            program, consts = Traced.trace(f, params, z_part, x_part, len(programs) + 1)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"jdeq.fixed_point: compact={compact} needs an f that works on any number of "
                "samples, without params or captured arrays that have one entry per sample; on "
                f"{size} of {samples}: {error}"
            ) from error
        programs.append((size, program))
        # Their gradients come through the f of all samples.
        captured.append(jax.lax.stop_gradient(consts))
    return tuple(programs), captured


def check_output(z0: PyTree, out: PyTree) -> None:
    """Raise unless f returned the structure and shapes of the state."""
    want, got = jax.tree.structure(z0), jax.tree.structure(out)
    if want != got:
        raise TypeError(f"jdeq.fixed_point: f must keep the structure of z, {want}; got {got}")
    for old, new in zip(jax.tree.leaves(z0), jax.tree.leaves(out), strict=True):
        if old.shape != new.shape:
            raise ValueError(
                f"jdeq.fixed_point: f must keep the shapes of z, {old.shape}; got {new.shape}"
            )


def check_placement(z0: PyTree, jaxpr: Any) -> None:
    """Raise unless f left the state where it was on a mesh with explicit axes."""
    for old, new in zip(jax.tree.leaves(z0), jaxpr.outvars, strict=True):
        was, now = jax.typeof(old).sharding.spec, new.aval.sharding.spec
        if tuple(was) != tuple(now):
            raise ValueError(
                f"jdeq.fixed_point: z0 must lie on the mesh as f(z0) does, {now}; got {was}. Make "
                "it by jnp.zeros_like of an array that does, or place it by jax.sharding.reshard"
            )
