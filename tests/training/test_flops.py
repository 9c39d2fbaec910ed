"""Operations of a step against those of an affine cell counted by hand; what is recorded."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jdeq
from jdeq.data import Dataset
from jdeq.linen import DEQ
from jdeq.training import (
    Layout,
    Phase,
    count_flops,
    cross_entropy_loss,
    make_init,
    make_mesh,
    make_train_step,
    peak_flops,
    peak_memory,
)
from tests.training.problem import MODEL, STEP, make_loop
from tests.training.test_loop import run

BATCH, WIDTH = 128, 512


class Cell(nn.Module):
    @nn.compact
    def __call__(self, z, x):
        kernel_init = nn.initializers.normal(0.015)
        return nn.Dense(WIDTH, use_bias=False, kernel_init=kernel_init)(z) + x


class Affine(nn.Module):
    options: tuple
    solves: int = 1

    @nn.compact
    def __call__(self, x, *, train=False, probe=None):
        for _ in range(self.solves):
            solution = DEQ(cell=Cell(parent=None), rtol=1e-4, **dict(self.options))(x, probe=probe)
            x = solution.z
        return nn.Dense(2)(solution.z), solution


def metrics_of(model, *, has_probe=True, **options):
    optimizer = optax.sgd(0.1)
    inputs = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
    state = make_init(model, optimizer)(jax.random.key(0), inputs)
    loss = cross_entropy_loss(model, probe_backward=has_probe)
    step = count_flops(make_train_step(loss, optimizer, **options), model)
    _, metrics = step(state, Dataset(inputs, np.zeros(BATCH, np.int32)), 0.0, penalize=False)
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("solver", "rule", "max_steps", "extra"),
    [
        (jdeq.Picard(), jdeq.Implicit(), 12, 0),
        (jdeq.Picard(), jdeq.Implicit(max_steps=1), 1, 0),
        (jdeq.Anderson(depth=1), jdeq.Implicit(solver=jdeq.Picard()), 12, 0),
        (jdeq.Reversible(), jdeq.OneStep(), 8, 0),
        (jdeq.Picard(), jdeq.Neumann(terms=5), 12, 4),  # products after the first term
    ],
)
def test_flops_are_those_counted_by_hand(solver, rule, max_steps, extra):
    """An evaluation and a product with the transposed kernel are a matrix product each, and the
    gradient of the kernel is one.
    """
    options = (("solver", solver), ("gradient", rule), ("max_steps", max_steps))
    metrics = metrics_of(Affine(options), has_probe=rule.has_probe)
    products = metrics["nfe_forward"] + metrics["nfe_backward"] + extra + 1
    # 5%: norms, the solver, the head of two classes and the optimiser beside a wide cell
    assert metrics["flops"] == pytest.approx(products * 2 * BATCH * WIDTH**2, rel=0.05)


def test_nothing_is_told_where_it_would_be_wrong():
    """Loops that report nothing; two solves, of which the statistics are the last one's."""
    unrolled = (("gradient", jdeq.Unrolled()), ("max_steps", 3))
    assert "flops" not in metrics_of(Affine(unrolled), has_probe=False)
    short = (("max_steps", 3),)
    assert "flops" not in metrics_of(Affine(short, solves=2))
    parts = {"layout": Layout(mesh=make_mesh(data=8)), "local_stop": True}
    assert "flops" not in metrics_of(Affine(short), **parts)  # XLA counts one part of eight


def test_records_have_the_rate_and_the_memory(tmp_path):
    loop = make_loop(2, phases=[Phase(until=2, steps=[count_flops(STEP, MODEL)])], peak_flops=1e9)
    _, rows = run(loop, tmp_path)
    for _, _, metrics in rows:
        assert metrics["flops_per_second"] > 0
        assert metrics["mfu"] == pytest.approx(metrics["flops_per_second"] / 1e9)
        assert 50 < metrics["host_peak_mib"] < 1e6  # a process that has imported jax
        assert "flops" not in metrics
    assert peak_memory().keys() == {"host_peak_mib"}  # the CPU's devices do not tell
    assert peak_flops(jax.devices()[0]) is None
