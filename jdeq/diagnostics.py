"""Diagnostics of a solve: spectral radius, eigenvalues, adjoint residual, gradient error."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from jdeq import tree
from jdeq.fixed_point import backward_probe, fixed_point
from jdeq.gradients import Implicit
from jdeq.iterate import resolution
from jdeq.solvers import Anderson
from jdeq.spectrum import (
    BetaProposal,
    Eigenvalues,
    leading_eigenvalues,
    propose_beta,
    spectral_radius,
)
from jdeq.types import GradientRule, Solution, Solver, Status

__all__ = [
    "BetaProposal",
    "Eigenvalues",
    "GradientComparison",
    "adjoint_residual",
    "convergence_report",
    "gradient_cosine",
    "leading_eigenvalues",
    "propose_beta",
    "spectral_radius",
]


def adjoint_residual(
    f: Callable[[PyTree, PyTree, PyTree], PyTree],
    params: PyTree,
    z: PyTree,
    x: PyTree,
    w: PyTree,
    ct: PyTree,
    *,
    batch_ndim: int = 1,
) -> Float[Array, " *batch"]:
    """Residual of the adjoint equation per sample, ``||J^T w + ct - w|| / ||J^T w + ct||``.

    Zero where w is the adjoint that implicit differentiation multiplies ``df/dtheta`` by.

    Args:
      f: the map ``f(params, z, x) -> z``, samples separate.
      z: state to linearize at, normally ``solution.z``; float[*batch, ...] leaves.
      w, ct: candidate adjoint and cotangent of the loss, shaped like z.
      batch_ndim: number of sample axes, >= 0.
    Returns:
      one value per sample, float32 or wider; 0 where w solves the equation exactly.
    Cost: one evaluation of f and one transposed product.
    """
    _, pullback = jax.vjp(lambda z: tree.cast_like(f(params, z, x), z), z)
    image = tree.add(pullback(w)[0], ct)
    return tree.relative(image, w, batch_ndim)


class GradientComparison(NamedTuple):
    """Result of :func:`gradient_cosine`.

    Attributes:
      cosine: of the angle between the gradient and the reference; 1 where both are zero.
      relative_error: ``||gradient - reference|| / ||reference||``.
      reference_residual: largest relative residual of the reference's solve and its adjoint solve:
        how far the reference itself can be trusted (times ``1 / (1 - rho)``).
    """

    cosine: Float[Array, ""]
    relative_error: Float[Array, ""]
    reference_residual: Float[Array, ""]


def gradient_cosine(
    f: Callable[[PyTree, PyTree, PyTree], PyTree],
    params: PyTree,
    z0: PyTree,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    *,
    solver: Solver = Anderson(),  # noqa: B008
    gradient: GradientRule = Implicit(),  # noqa: B008
    rtol: float = 1e-3,
    max_steps: int = 40,
    tighten: float = 1e-3,
    batch_ndim: int = 1,
) -> GradientComparison:
    """Cosine and relative error of ``d loss(z*) / d params`` against a tighter ``Implicit`` solve.

    The reference uses the same solver, ``rtol * tighten`` (but not below 16 times what the dtype of
    z0 resolves) and ten times the steps, forward and backward. It says
    what a loose tolerance or an approximate rule costs in gradient quality.

    Args:
      f, params, z0, x, solver, gradient, rtol, max_steps, batch_ndim: as in
        :func:`jdeq.fixed_point`.
      loss: scalar loss of the state.
      tighten: in (0, 1), factor on rtol for the reference.
    Raises:
      ValueError: if ``tighten`` lies outside (0, 1).
    Cost: the solve asked for, forward and backward, and the reference's, from its solution.
    """
    if not 0.0 < tighten < 1.0:
        raise ValueError(f"jdeq.gradient_cosine: tighten must lie in (0, 1); got {tighten}")

    def objective(params, rule, rtol, max_steps, z0, probe):
        solution = fixed_point(
            f, params, z0, x, solver=solver, gradient=rule, rtol=rtol, max_steps=max_steps,
            batch_ndim=batch_ndim, probe=probe,
        )  # fmt: skip
        return loss(solution.z), solution

    differentiate = jax.grad(objective, argnums=(0, 5), has_aux=True)
    (ours, _), solution = differentiate(params, gradient, rtol, max_steps, z0, None)
    tight = max(rtol * tighten, 16 * resolution(jax.tree.map(jnp.asarray, z0)))
    probe = backward_probe()
    (reference, backward), solution = differentiate(
        params, Implicit(), tight, 10 * max_steps, lax.stop_gradient(solution.z), probe
    )
    largest = tree.unit(jnp.maximum(tree.largest(ours, 0), tree.largest(reference, 0)))
    ours, reference = tree.divide(ours, largest), tree.divide(reference, largest)
    size, reference_size = tree.norm(ours, 0), tree.norm(reference, 0)
    error = tree.norm(tree.subtract(ours, reference), 0)
    scale = size * reference_size
    cosine = jnp.where(
        scale == 0, error == 0, tree.dot(ours, reference, 0) / jnp.where(scale == 0, 1.0, scale)
    )
    return GradientComparison(
        cosine=cosine,
        relative_error=jnp.where(error == 0, 0.0, error / reference_size),
        reference_residual=jnp.maximum(jnp.max(solution.stats.residual), backward[1]),
    )


def convergence_report(solution: Solution) -> str:
    """A short summary: samples per status, least, median and most evaluations, largest residual.

    Args:
      solution: of :func:`jdeq.fixed_point`, with concrete values (outside jit).
    Returns:
      two lines, such as
      ``64 samples: 62 CONVERGED, 2 MAX_STEPS`` and
      ``nfe 4 / 7 / 40 (min / median / max), residual at most 2.1e-02``; of no samples the first.
    """
    nfe, residual, status = (np.asarray(value).ravel() for value in solution.stats)
    counts = [(np.sum(status == kind), kind.name) for kind in Status]
    ends = ", ".join(f"{count} {name}" for count, name in counts if count)
    if not status.size:
        return "0 samples"
    noun = "sample" if status.size == 1 else "samples"
    return (
        f"{status.size} {noun}: {ends}\n"
        f"nfe {nfe.min()} / {np.median(nfe):g} / {nfe.max()} (min / median / max), "
        f"residual at most {residual.max():.1e}"
    )
