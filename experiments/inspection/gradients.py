"""The gradient of the test loss by each rule against that of a tight solve."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jdeq
from experiments.bench.harness import counted
from experiments.build import Run, eval_step
from experiments.inspection.solves import Cell, timed
from jdeq.data import Dataset
from jdeq.iterate import resolution
from jdeq.linen import DEQ
from jdeq.types import GradientRule, Solver

REFERENCE_RTOL = 1e-10  # in float64; else 16 times what the state resolves
REFERENCE_STEPS = 300
TRUSTED = 1e-4  # a reference with a larger residual is none


class Gradient(NamedTuple):
    """The gradient of the mean loss in all parameters, at one setting.

    Attributes:
      vector: all leaves in one row, float64.
      loss: in nats, or squared units of the labels.
      evaluations, products: of the cell, and with its Jacobian, that the batch took until its
        slowest sample was done; counted as they run.
      nfe: mean of the forward solve, a sample.
      residual: largest of the forward solve.
      residual_backward: largest of the backward solve; NaN for a rule that has none.
      seconds: of loss and gradient on this machine, the counting included.
    """

    vector: Float[np.ndarray, " parameters"]
    loss: float
    evaluations: int
    products: int
    nfe: float
    residual: float
    residual_backward: float
    seconds: float


class Quality(NamedTuple):
    """A gradient beside the reference: ``cosine`` of the angle, and
    ``||g - reference|| / ||reference||``.
    """

    cosine: float
    relative_error: float


def examples_of(run: Run, count: int) -> Dataset:
    """The first test examples, of a text with a memory their first segments."""
    inputs = run.task.test_inputs(count)
    labels = run.task.test.labels[:count]
    return Dataset(inputs, labels if run.task.segment is None else labels[:, : run.task.segment])


def gradient(
    run: Run, model: Any, variables: dict[str, Any], batch: Dataset, cell: Cell
) -> Gradient:
    """That of ``model`` on ``batch``, without dropout and without a memory, running averages in
    place of statistics of the batch.
    """
    step = eval_step(model, dataclasses.replace(run.task, segment=None))
    counts = dict.fromkeys(("evaluations", "products", "jvps"), 0)
    others = {name: value for name, value in variables.items() if name != "memory"}

    def objective(params, probe, others, batch):
        watch = functools.partial(_watched, cell.kind, counts, probe)
        with nn.intercept_methods(watch):
            out = step({**others, "params": params}, batch)
        loss = out.loss_nats.sum() / out.counted.sum()
        return loss, (loss, out.nfe, out.residual)

    probe = jdeq.backward_probe() if model.gradient.has_probe else None
    wanted = (0,) if probe is None else (0, 1)
    differentiate = jax.jit(jax.grad(objective, argnums=wanted, has_aux=True))
    args = variables["params"], probe, others, batch
    compiled = differentiate.lower(*args).compile()
    (grads, *reported), (loss, nfe, residual) = jax.block_until_ready(compiled(*args))
    jax.effects_barrier()
    once = dict(counts)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)]
    return Gradient(
        vector=np.concatenate(leaves),
        loss=float(loss),
        evaluations=once["evaluations"],
        products=once["products"] + once["jvps"],
        nfe=float(nfe.mean()),
        residual=float(residual.max()),
        residual_backward=float(reported[0][1]) if reported else np.nan,
        seconds=timed(lambda: compiled(*args)),
    )


def _watched(kind, counts, probe, call, args, kwargs, context):
    """Calls of the cell are counted; those of a DEQ carry the probe."""
    if context.method_name == "__call__":
        if type(context.module) is kind:
            return counted(lambda _, z, x: call(z, x), counts)(None, *args)
        if isinstance(context.module, DEQ) and probe is not None:
            return call(*args, **(kwargs | {"probe": probe}))
    return call(*args, **kwargs)


def reference(
    run: Run, variables: dict[str, Any], batch: Dataset, cell: Cell
) -> tuple[Gradient, str]:
    """The implicit gradient of a tight solve, forward and backward (by GMRES), in float64 where the
    model computes in it; and in words how it was solved.

    First by the run's solver, then, if that does not get below `TRUSTED`, by Newton's method, each
    sequence being one sample; the one that came closer.
    """
    with jax.enable_x64(True):
        variables, batch = (jax.tree.map(_wide, a) for a in (variables, batch))
        z = jax.eval_shape(lambda v: run.model.apply(v, batch.inputs)[1].z, variables)
        rtol = max(REFERENCE_RTOL, 16 * resolution(z))
        tight = run.model.clone(
            gradient=jdeq.Implicit(solver=jdeq.NewtonKrylov(), rtol=rtol, max_steps=30),
            rtol=rtol,
            max_steps=REFERENCE_STEPS,
            test_every=1,
        )
        newton = tight.clone(solver=jdeq.NewtonKrylov(), max_steps=30)
        if cell.causal:
            newton = newton.clone(causal=False)
        best, by = gradient(run, tight, variables, batch, cell), tight.solver
        if not _error(best) <= TRUSTED and newton.solver != by:
            other = gradient(run, newton, variables, batch, cell)
            if not _error(best) <= _error(other):
                best, by = other, newton.solver
    bits = "/".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(z)}))
    return best, f"{by} in {bits} to rtol {rtol:.0e}"


def _wide(a: Any) -> Any:
    return jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else jnp.asarray(a)


def _error(gradient: Gradient) -> float:
    return max(gradient.residual, gradient.residual_backward)


def trusted(reference: Gradient) -> bool:
    """Whether both its solves came near enough for others to be judged by it."""
    return bool(_error(reference) <= TRUSTED and np.all(np.isfinite(reference.vector)))


def compare(
    vector: Float[np.ndarray, " parameters"], reference: Float[np.ndarray, " parameters"]
) -> Quality:
    """One gradient beside another; (1, 0) where both are zero."""
    size, true, error = (np.linalg.norm(a) for a in (vector, reference, vector - reference))
    if error == 0:
        return Quality(1.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Quality(float(vector @ reference / (size * true)), float(error / true))


def rules_of(model: Any) -> dict[str, tuple[Solver, GradientRule]]:
    """The rules to compare and the solver that each runs with: the run's own, and the others as
    they are by default, those that cannot work with the run's solver left out; SharedInverse with
    Broyden.
    """
    own = type(model.gradient).__name__
    rules: list[GradientRule] = [
        jdeq.Implicit(), jdeq.OneStep(), jdeq.Phantom(), jdeq.Neumann(), jdeq.SharedInverse(),
        jdeq.Unrolled(), jdeq.ReversibleGradient(),
    ]  # fmt: skip
    chosen = {f"{own} (this run)": (model.solver, model.gradient)}
    for rule in rules:
        name = type(rule).__name__
        if name == own:
            continue
        solver, label = model.solver, name
        if isinstance(rule, jdeq.SharedInverse) and not isinstance(solver, jdeq.Broyden):
            solver, label = jdeq.Broyden(), f"{name}, Broyden forward"
        try:
            rule.validate(solver)
        except ValueError:
            continue
        chosen[label] = solver, rule
    return chosen
