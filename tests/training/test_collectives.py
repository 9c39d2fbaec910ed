"""What the devices tell each other, counted in the compiled training step at width 512."""

import jax
import pytest

import jdeq
from experiments.bench.collectives import collectives
from jdeq.training import cross_entropy_loss, make_train_step
from tests.training.test_sharding import BATCH, OPTIMIZER, Model, batch_at, initial_state, layout


def collectives_in_loops(program):
    """(kind, type) of every collective that a while loop of the HLO text reaches."""
    assert " while(" in program
    return [(c.kind, c.type) for c in collectives(program) if c.in_loop]


def compiled(model, spread, *, penalize=False, **options):
    step = make_train_step(cross_entropy_loss(model), OPTIMIZER, layout=spread, **options)
    arguments = (initial_state(model, spread), spread.put(batch_at(0), BATCH), 0.1)
    return step.lower(*arguments, penalize=penalize).compile().as_text()


@pytest.mark.parametrize("penalize", [False, True])
@pytest.mark.parametrize(
    "solver",
    [
        jdeq.Anderson(depth=3),
        pytest.param(jdeq.Picard(), marks=pytest.mark.slow),
        pytest.param(jdeq.Broyden(), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "axes", [dict(data=8), dict(data=4, fsdp=2), dict(data=1, fsdp=8)], ids=str
)
def test_only_the_stop_test(axes, solver, penalize):
    if penalize and not isinstance(solver, jdeq.Anderson):
        pytest.skip("the penalty is outside the solve, whatever solves")
    found = collectives_in_loops(compiled(Model(solver=solver), layout(**axes), penalize=penalize))
    # One of the forward solve, one of the backward solve: is a sample still running, and beyond
    # the range of squares?
    assert found == [("all-reduce", "u8[]")] * 2


@pytest.mark.parametrize("axes", [dict(data=8), dict(data=4, fsdp=2)], ids=str)
def test_none_with_a_local_stop_or_a_fixed_budget(axes):
    assert collectives_in_loops(compiled(Model(), layout(**axes), local_stop=True)) == []
    assert collectives_in_loops(compiled(Model(test_every=12), layout(**axes))) == []


def test_none_for_a_budget_of_one():
    z = jax.device_put(jax.numpy.ones((BATCH, 8)), layout(data=8).batch)

    def solve(z):
        return jdeq.fixed_point(lambda _, z, x: jax.numpy.tanh(z), (), z, z, max_steps=1).z

    assert collectives(jax.jit(solve).lower(z).compile().as_text()) == []


@pytest.mark.slow  # with the emitters that users have
def test_testing_every_four_steps_is_outside_the_loop_of_steps():
    program = compiled(Model(test_every=4), layout(data=8))
    assert collectives_in_loops(program) == [("all-reduce", "pred[]")] * 2
    inner = [line for line in program.splitlines() if " while(" in line]
    assert len(inner) == 4  # of each solve one that tests and one that steps


def test_tensor_parallel_evaluations_have_their_own():
    found = collectives_in_loops(compiled(Model(), layout(data=2, fsdp=2, tensor=2)))
    assert found.count(("all-reduce", "u8[]")) == 2
    # The block's one forward, and one of its pullback; the state itself is never gathered.
    assert not [kind for kind, _ in found if kind != "all-reduce"]
    assert len(found) <= 2 + 4


def test_the_count_sees_a_sum_over_devices_in_a_loop():
    rows = layout(data=8).batch
    z = jax.device_put(jax.numpy.ones((BATCH, 512)), rows)

    def loop(z):
        return jax.lax.fori_loop(0, 3, lambda _, z: jax.numpy.tanh(z - z.mean(0)), z)

    program = jax.jit(loop).lower(z).compile().as_text()
    assert collectives_in_loops(program) == [("all-reduce", "f32[512]{0}")]
