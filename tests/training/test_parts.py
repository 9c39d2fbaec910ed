"""Metrics, schedules, stopping, and the equilibrium taken out of a model."""

import io
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jdeq
from jdeq.data import IGNORED, Dataset
from jdeq.training import (
    JsonLines,
    StopRequest,
    TensorBoard,
    Terminal,
    adamw,
    confusion_matrix,
    equilibrium_of,
    evaluate,
    make_eval_step,
    mean_iou,
    read_metrics,
    sgd,
    summarize,
    warmup_constant,
    warmup_cosine,
    warmup_steps_decay,
)
from jdeq.training.losses import score, score_losses
from tests.training.problem import MODEL, STEP, initial_state, toy_data

TRAIN = {
    "loss_nats": 0.5, "accuracy": 0.75, "nfe_forward": 6.0, "nfe_backward": 7.0,
    "residual_max": 1e-3, "residual_backward": math.inf, "examples_per_second": 100.0,
    "count_skipped": 2,
}  # fmt: skip


def test_summarize_combines_by_name():
    records = [
        {"loss_nats": 1.0, "residual_max": 0.1, "count_skipped": 1, "step_seconds": 60.0},
        {"loss_nats": 3.0, "residual_max": 0.3, "count_skipped": 1, "step_seconds": 0.1},
        {"loss_nats": 2.0, "residual_max": math.nan, "count_skipped": 0, "step_seconds": 0.2},
    ]
    summary = summarize([{**r, **({"penalty": 5.0} if i else {})} for i, r in enumerate(records)])
    assert math.isnan(summary.pop("residual_max"))
    assert summary == {"loss_nats": 2.0, "count_skipped": 2, "step_seconds": 0.2, "penalty": 5.0}


def test_json_lines_go_on_where_the_checkpoint_stands(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, start_step=0)
    for step in (5, 10, 15):
        first.write(step, "train", {"loss_nats": float(step), "residual_max": math.nan})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 20, "ki')  # killed while writing
    second = JsonLines(path, start_step=10)
    second.write(12, "test", {"accuracy": 1.0})
    second.close()
    assert [r["step"] for r in read_metrics(path)] == [5, 10, 12]
    assert read_metrics(path)[0]["residual_max"] is None
    assert "NaN" not in path.read_text()
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_tensorboard_writes_events(tmp_path):
    board = TensorBoard(tmp_path, start_step=0)
    board.write(1, "train", TRAIN)
    board.close()
    assert [p for p in tmp_path.iterdir() if "tfevents" in p.name]


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_shows_the_numbers(terminal, capsys):
    console = Console(file=io.StringIO() if terminal else None, force_terminal=terminal, width=150)
    sink = Terminal(total_steps=20, start_step=0, steps_per_epoch=5, console=console)
    sink.write(10, "train", TRAIN)
    sink.write(10, "test", {**TRAIN, "residual_mean": 0.01})
    sink.close()
    shown = console.file.getvalue() if terminal else capsys.readouterr().out
    for text in ("loss 0.500", "75.0%", "nfe 6.0/7.0", "1e-03/inf", "100 examples/s", "skipped 2"):
        assert text in shown
    assert "accuracy 75.00%" in shown
    assert ("\x1b[" in shown) == terminal


def test_warmup_cosine():
    schedule = warmup_cosine(peak=2.0, warmup_steps=10, total_steps=110)
    values = [float(schedule(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.0, 1.0, 2.0, 1.0, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match=r"warmup_steps must be in 0\.\..*= 9; got 10"):
        warmup_cosine(peak=1.0, warmup_steps=10, total_steps=10)
    for peak in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"peak must be > 0 and finite; got {peak}"):
            warmup_cosine(peak=peak, warmup_steps=0, total_steps=10)


def test_warmup_constant():
    schedule = warmup_constant(peak=2.0, warmup_steps=10)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 10**6)], [0.0, 1.0, 2.0, 2.0])
    assert warmup_constant(peak=2.0, warmup_steps=0)(0) == 2.0
    with pytest.raises(ValueError, match="warmup_steps must be >= 0; got -1"):
        warmup_constant(peak=1.0, warmup_steps=-1)
    with pytest.raises(ValueError, match="warmup_constant: peak must be > 0 and finite; got 0"):
        warmup_constant(peak=0, warmup_steps=0)


def test_weight_decay_is_for_kernels():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = adamw(lambda step: 0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)
    for options in (
        {"weight_decay": -1.0},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
        {"clip_norm": 0.0},
    ):
        with pytest.raises(ValueError, match=f"jdeq.training.adamw: {next(iter(options))} must be"):
            adamw(lambda step: 0.1, **options)


def test_warmup_steps_decay():
    schedule = warmup_steps_decay(peak=2.0, warmup_steps=2, every=10, factor=0.1)
    found = [float(schedule(step)) for step in (0, 1, 2, 9, 10, 19, 20)]
    np.testing.assert_allclose(found, [0.0, 1.0, 2.0, 2.0, 0.2, 0.2, 0.02], rtol=1e-6)
    for bad, message in (
        ({"every": 0}, "every must be >= 1; got 0"),
        ({"factor": 1.0}, r"factor must lie in \(0, 1\); got 1.0"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0; got -1"),
        ({"peak": math.inf}, "peak must be > 0 and finite; got inf"),
    ):
        options = {"peak": 1.0, "warmup_steps": 0, "every": 5, "factor": 0.1} | bad
        with pytest.raises(ValueError, match=f"jdeq.training.warmup_steps_decay: {message}"):
            warmup_steps_decay(**options)


@pytest.mark.parametrize("nesterov", [True, False])
def test_gradient_descent_with_momentum(nesterov):
    """Against the formula, two steps; decay is for every parameter."""
    optimizer = sgd(lambda step: 0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.5)
    params = {"bias": jnp.full(2, 2.0)}
    state, p, m = optimizer.init(params), 2.0, 0.0
    for gradient in (1.0, -3.0):
        updates, state = optimizer.update({"bias": jnp.full(2, gradient)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = gradient + 0.5 * p
        m = 0.9 * m + g
        p -= 0.1 * (0.9 * m + g if nesterov else m)
        np.testing.assert_allclose(params["bias"], p, rtol=1e-6)
    for options in ({"momentum": 1.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0}):
        with pytest.raises(ValueError, match=f"jdeq.training.sgd: {next(iter(options))} must"):
            sgd(lambda step: 0.1, **options)


def test_confusion_and_intersection_over_union():
    labels = np.array([[0, 0, 1], [1, 2, IGNORED]])
    predicted = np.array([[0, 1, 1], [1, 0, 2]])
    counts = confusion_matrix(labels, predicted, 4)
    np.testing.assert_array_equal(counts[:3, :3], [[1, 1, 0], [0, 2, 0], [1, 0, 0]])
    assert counts.sum() == 5 and counts.shape == (4, 4)
    # class 0: 1 of {0, 0, 2 as 0}; 1: 2 of 3; 2: 0 of 1; 3 is nowhere and does not count
    assert mean_iou(counts) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)
    assert math.isnan(mean_iou(np.zeros((3, 3), np.int64)))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1; got 2"):
        confusion_matrix(labels, predicted, 2)
    with pytest.raises(ValueError, match=r"predicted must lie in 0\.\.1; got 5"):
        confusion_matrix(np.array([1]), np.array([5]), 2)
    ones, floats = np.ones(2, np.int32), np.ones(2)
    for arguments, message in (
        ((ones, ones[:1], 2), r"predicted must have the shape of labels, \(2,\); got \(1,\)"),
        ((floats, ones, 2), "labels must be integers; got float64"),
        ((ones, floats, 2), "predicted must be integers; got float64"),
        ((ones, ones, 0), "classes must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=f"jdeq.training.confusion_matrix: {message}"):
            confusion_matrix(*arguments)


def test_first_signal_asks_second_interrupts():
    previous = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.reached(1) and stop.name is None
        signal.raise_signal(signal.SIGINT)
        assert stop.reached(2) and stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_equilibrium_of_is_the_problem_the_model_solves():
    images, variables = toy_data().inputs[:4], initial_state().variables
    _, solution = MODEL.apply(variables, images)
    f, params, z0, x, z = equilibrium_of(MODEL, variables, images)
    ours = jdeq.fixed_point(f, params, z0, x, solver=jdeq.Anderson(depth=3), max_steps=10)
    np.testing.assert_allclose(ours.z, solution.z, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z, solution.z)


def test_ignored_labels_count_for_nothing():
    """Loss, accuracy and gradient are those of the other labels, by log-softmax in numpy."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    labels = np.array([[1, IGNORED, 0], [IGNORED, IGNORED, 3]])
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = [-log_probabilities[0, 0, 1], -log_probabilities[0, 2, 0], -log_probabilities[1, 2, 3]]
    losses, correct, counted, predicted = score(logits, labels)
    np.testing.assert_array_equal(predicted, logits.argmax(-1))
    np.testing.assert_array_equal(counted, labels != IGNORED)
    np.testing.assert_allclose(losses[counted], want, rtol=1e-5)
    assert float(losses.sum()) == pytest.approx(sum(want), rel=1e-5)
    hits = [logits[i].argmax() == labels[i] for i in ((0, 0), (0, 2), (1, 2))]
    assert list(correct[counted]) == hits and int(correct.sum()) == sum(hits)
    gradient = jax.grad(lambda logits: score(logits, labels).loss_nats.sum())(logits)
    assert np.all(gradient[~counted] == 0) and np.all(np.abs(gradient[counted]).max(-1) > 0)


def test_a_label_that_is_no_class_is_not_a_good_guess():
    logits = jnp.zeros((1, 4, 3))
    labels = jnp.array([[2, -2, 3, IGNORED]])
    for scores in (score(logits, labels), score_losses(jnp.zeros((1, 4)), labels)):
        assert np.isnan(scores.loss_nats[0, 1])
        assert np.isfinite(scores.loss_nats[0, [0, 3]]).all()
    assert np.isnan(score(logits, labels).loss_nats[0, 2])


def test_a_step_and_an_evaluation_leave_out_what_is_ignored():
    data = toy_data(16)
    half = data._replace(labels=np.where(np.arange(16) < 8, data.labels, IGNORED))
    variables = initial_state().variables
    step = make_eval_step(MODEL)
    some = evaluate(step, variables, half, batch_size=16)
    first = evaluate(step, variables, Dataset(*(leaf[:8] for leaf in data)), batch_size=8)
    for name in ("loss_nats", "accuracy"):
        assert some[name] == pytest.approx(first[name], rel=1e-4)
    _, metrics = STEP(initial_state(), half, 0.0, penalize=False)
    _, whole = STEP(initial_state(), data, 0.0, penalize=False)
    _, rest = STEP(
        initial_state(),
        data._replace(labels=np.where(np.arange(16) < 8, IGNORED, data.labels)),
        0.0,
        penalize=False,
    )
    both = (float(metrics["loss_nats"]) + float(rest["loss_nats"])) / 2
    assert float(whole["loss_nats"]) == pytest.approx(both, rel=1e-4)
