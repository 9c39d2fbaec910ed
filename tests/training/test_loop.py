"""Steps, loop and resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.data import Dataset, ShuffledBatches
from jdeq.training import (
    Checkpoints,
    NonFiniteError,
    Phase,
    StopRequest,
    abstract_state,
    evaluate,
    make_eval_step,
)
from tests.training.problem import (
    INIT,
    MODEL,
    STEP,
    Recorder,
    initial_state,
    make_loop,
    toy_data,
)


def run(loop, directory, *, stop_after=None):
    """One process's part of a run: from the last checkpoint to the end or to a signal."""
    checkpoints = Checkpoints(directory)
    recorder = Recorder(stop_after)
    with StopRequest() as stop:
        key, images = jax.random.key(0), toy_data().inputs[:8]
        restored = checkpoints.restore(abstract_state(INIT, key, images))
        state = restored.state if restored else initial_state()
        extra = {"train_seconds": 0.0}
        state = loop.run(state, checkpoints=checkpoints, sinks=[recorder], stop=stop, extra=extra)
    assert extra["train_seconds"] > 0
    checkpoints.close()
    return state, recorder.rows


def assert_same(one, two):
    for (path, a), (_, b) in zip(
        *map(jax.tree_util.tree_leaves_with_path, (one, two)), strict=True
    ):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    straight, rows = run(make_loop(), tmp_path / "a")
    partial, _ = run(make_loop(), tmp_path / "b", stop_after=7)  # mid-epoch: 5 batches an epoch
    assert int(partial.step) == 8  # the request came after that of step 7 was read
    resumed, more = run(make_loop(), tmp_path / "b")
    assert more[0][0] == 9
    assert_same(straight, resumed)
    assert rows[8][2]["loss_nats"] == more[0][2]["loss_nats"]


def test_loss_falls_and_metrics_are_complete(tmp_path):
    _, rows = run(make_loop(60), tmp_path)
    losses = [metrics["loss_nats"] for _, _, metrics in rows]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    names = set().union(*(metrics for _, _, metrics in rows))
    assert names == {
        "loss_nats", "accuracy", "penalty", "nfe_forward", "nfe_backward", "residual_mean",
        "residual_max", "residual_backward", "grad_norm", "count_skipped", "count_converged",
        "count_max_steps", "count_nonfinite", "count_diverged", "step_seconds",
        "examples_per_second", "learning_rate", "host_peak_mib",
    }  # fmt: skip
    last = rows[-1][2]
    assert last["nfe_forward"] > 1 and last["nfe_backward"] > 1 and last["residual_backward"] > 0
    penalized = ["penalty" in metrics for _, _, metrics in rows]
    assert 0.2 < np.mean(penalized) < 0.8  # probability 0.5 of 60


def test_hooks_run_on_their_steps_and_at_the_end(tmp_path):
    loop = make_loop(7, hooks=[(3, lambda state: ("test", {"step_seen": int(state.step)}))])
    _, rows = run(loop, tmp_path)
    assert [(s, m["step_seen"]) for s, k, m in rows if k == "test"] == [(3, 3), (6, 6), (7, 7)]


def broken_data(bad):
    """Batches of which those at the positions ``bad`` hold a NaN."""
    batches = ShuffledBatches(data=toy_data(), batch_size=8)

    def batch_at(position):
        images, labels = batches(position)
        return Dataset(np.full_like(images, np.nan) if position in bad else images, labels)

    return batch_at


def test_a_non_finite_step_changes_nothing_but_its_counters():
    state = initial_state()
    before = jax.tree.map(jnp.copy, state)
    after, metrics = STEP(state, broken_data({0})(0), 0.5, penalize=True)
    assert metrics["count_skipped"] == 1
    assert [int(n) for n in (after.step, after.skipped, after.skipped_in_row)] == [1, 1, 1]
    zero = jnp.zeros((), jnp.int32)
    assert_same(before, after._replace(step=zero, skipped=zero, skipped_in_row=zero))


def test_training_goes_on_past_a_few_bad_batches(tmp_path):
    state, _ = run(make_loop(10, batch_at=broken_data({2, 3, 6})), tmp_path)
    assert int(state.skipped) == 3 and int(state.skipped_in_row) == 0 and int(state.step) == 10


def test_training_stops_after_too_many_bad_batches_in_a_row(tmp_path):
    loop = make_loop(20, batch_at=broken_data(set(range(7, 20))))
    with pytest.raises(NonFiniteError, match=r"(?s)3 steps in a row.*steps 7 to 9"):
        run(loop, tmp_path)
    assert Checkpoints(tmp_path, read_only=True).steps() == [5]  # the last before the trouble


def test_evaluate_counts_every_example_once():
    variables, data = initial_state().variables, toy_data(40)
    step = make_eval_step(MODEL)
    whole = evaluate(step, variables, data, batch_size=40)
    parts = evaluate(step, variables, data, batch_size=16)
    for name, value in whole.items():
        # float32 sums over other batch shapes
        assert parts[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_step_compiles_once_a_variant(tmp_path):
    run(make_loop(10), tmp_path)
    before = STEP._cache_size()
    run(make_loop(12), tmp_path / "again")
    assert STEP._cache_size() == before


def test_a_phase_draws_its_steps_by_position(tmp_path):
    """Each of three about as often, the same ones after a stop in the middle."""
    taken = []

    def step(which):
        def count(state, batch, weight, *, penalize):
            taken.append(which)
            return state._replace(step=state.step + 1), {
                "loss_nats": 0.0,
                "learning_rate_scale": 1.0,
            }

        return count

    phase = Phase(until=60, steps=[step(i) for i in range(3)], seed=4)
    loop = make_loop(60, phases=[phase], save_every=100)
    _run_bare(loop, initial_state(), tmp_path / "whole")
    whole = list(taken)
    assert min(np.bincount(whole, minlength=3)) >= 10
    taken.clear()
    _run_bare(loop, initial_state()._replace(step=jnp.int32(25)), tmp_path / "rest")
    assert taken == whole[25:]


def test_the_learning_rate_is_that_of_the_steps_that_were_taken(tmp_path):
    """Steps 3 to 5 of 10 are skipped: the optimiser does not count them."""

    def step(state, batch, weight, *, penalize):
        skipped = 3 <= int(state.step) < 6
        return state._replace(
            step=state.step + 1,
            skipped=state.skipped + skipped,
            skipped_in_row=jnp.int32(state.skipped_in_row + 1 if skipped else 0),
        ), {"loss_nats": 0.0, "learning_rate_scale": 1.0}

    loop = make_loop(
        10,
        phases=[Phase(until=10, steps=[step])],
        log_every=1,
        max_skipped=5,
        learning_rate=float,
    )
    recorded = []

    class Sink:
        def write(self, step, kind, metrics):
            if kind == "train":
                recorded.append(metrics["learning_rate"])

        def close(self):
            pass

    checkpoints = Checkpoints(tmp_path)
    with StopRequest() as stop:
        loop.run(
            initial_state(), checkpoints=checkpoints, sinks=[Sink()], stop=stop,
            extra={"train_seconds": 0.0},
        )  # fmt: skip
    checkpoints.close()
    assert recorded == [0, 1, 2, 2, 2, 2, 3, 4, 5, 6]


def _run_bare(loop, state, directory):
    checkpoints = Checkpoints(directory)
    with StopRequest() as stop:
        loop.run(state, checkpoints=checkpoints, sinks=[], stop=stop, extra={"train_seconds": 0.0})
    checkpoints.close()


def test_memory_is_emptied_where_the_data_restarts(tmp_path):
    """A step that remembers its position: at 0, 4 and 8 it finds nothing, else the one before."""
    found = []

    def remember(state, batch, weight, *, penalize):
        found.append(int(state.model_state["memory"]["z"]))
        metrics = {"loss_nats": 0.0, "learning_rate_scale": 1.0}
        memory = {"z": jnp.asarray(1 + state.step, jnp.int32)}
        model_state = {**state.model_state, "memory": memory}
        return state._replace(step=state.step + 1, model_state=model_state), metrics

    loop = make_loop(
        10,
        phases=[Phase(until=10, steps=[remember])],
        restarts=lambda position: position % 4 == 0,
        save_every=100,
    )
    state = initial_state()
    state = state._replace(model_state={**state.model_state, "memory": {"z": jnp.int32(7)}})
    _run_bare(loop, state, tmp_path)
    assert found == [0, 1, 2, 3, 0, 5, 6, 7, 0, 9]


def test_the_next_batch_is_made_while_the_devices_work(tmp_path):
    batches, asked, taken = make_loop().batch_at, [], []

    def batch_at(position):
        asked.append(position)
        return batches(position)

    def step(state, batch, weight, *, penalize):
        taken.append(len(asked))
        return STEP(state, batch, weight, penalize=penalize)

    run(make_loop(12, batch_at=batch_at, phases=[Phase(until=12, steps=[step])]), tmp_path)
    assert asked == list(range(12))  # each once, none past the end
    assert taken == list(range(1, 13))  # the step is under way before the next one is asked for
