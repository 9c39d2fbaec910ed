"""The scalar DEQ: its formula, its solution, its gradient by hand, how it starts, errors."""

import jax
import numpy as np
import pytest

import jdeq
from jdeq.data import Dataset
from jdeq.models import ScalarCell, ScalarDEQ, ScalarDEQConfig
from jdeq.training import evaluate, make_eval_step, squared_error_loss
from jdeq.training.losses import score_numbers

CONFIG = ScalarDEQConfig(hidden=6, state_bound=0.5)
X = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
LABELS = np.linspace(2, -1, 5, dtype=np.float32)
MODEL = ScalarDEQ(CONFIG, solver=jdeq.Picard(), rtol=1e-6, max_steps=60)
VARIABLES = jax.device_get(jax.jit(MODEL.init)(jax.random.key(3), X))


def f(p, z, x):
    """In float64; and its slope in z, and the hidden units that are on."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    w1, w2 = p["up"]["kernel"][0], p["down"]["kernel"][:, 0]
    on = z * w1 + x * p["inject"]["kernel"][0] + p["inject"]["bias"]
    return np.maximum(on, 0) @ w2, (on > 0) @ (w1 * w2), np.maximum(on, 0)


def solved(p):
    z = np.zeros((5, 1))
    for _ in range(200):
        z = f(p, z, X)[0][:, None]
    return z


def cell_parameters(variables):
    (cell,) = variables["params"]["deq"].values()
    return cell


def test_it_returns_the_fixed_point_of_its_formula():
    p = cell_parameters(VARIABLES)
    z = np.random.default_rng(0).normal(size=(5, 1)).astype(np.float32)
    out = ScalarCell(CONFIG).apply({"params": p}, z, X)
    np.testing.assert_allclose(out[:, 0], f(p, z, X)[0], rtol=1e-5, atol=1e-6)
    outputs, solution = jax.jit(MODEL.apply)(VARIABLES, X)
    want = solved(p)
    assert np.ptp(want) > 0.1 and np.abs(f(p, want, X)[1]).max() > 0.01
    np.testing.assert_allclose(outputs, want[:, 0], atol=1e-5)
    np.testing.assert_allclose(solution.z, want, atol=1e-5)
    assert (np.asarray(solution.stats.status) == jdeq.Status.CONVERGED).all()


def test_the_loss_its_gradient_and_its_penalty_are_those_by_hand():
    """dL/dW_2 = mean 2 (z* - y) h / (1 - f'); the penalty is eps^2 f'^2, eps of unit variance."""
    loss = squared_error_loss(MODEL)
    batch, probe = Dataset(X, LABELS), jdeq.backward_probe()

    def objective(params, key):
        out = loss(params, {}, batch, key=key, probe=probe, penalize=True)
        return out.loss_nats, out

    params, keys = VARIABLES["params"], jax.random.split(jax.random.key(0), 400)
    differentiate = jax.vmap(jax.grad(objective, has_aux=True), in_axes=(None, 0))
    gradients, outs = jax.jit(differentiate)(params, keys)
    gradient, out = jax.tree.map(lambda a: a[0], (gradients, outs))  # the first of 400 draws
    p = cell_parameters(VARIABLES)
    z = solved(p)
    _, slope, hidden = f(p, z, X)
    error = z[:, 0] - LABELS
    assert float(out.loss_nats) == pytest.approx(np.mean(error**2), rel=1e-4)
    assert out.accuracy is None and int(out.count) == 5
    want = np.mean((2 * error / (1 - slope))[:, None] * hidden, axis=0)
    np.testing.assert_allclose(
        cell_parameters({"params": gradient})["down"]["kernel"][:, 0], want, rtol=1e-3, atol=1e-4
    )
    # Of the mean of 2000 squares the standard error is 3%, or more where slopes differ.
    assert float(outs.penalty.mean()) == pytest.approx(np.mean(slope**2), rel=0.15)


def test_evaluation_by_squared_errors():
    data = Dataset(X, LABELS)
    step = make_eval_step(MODEL, squared_error=True)
    means = evaluate(step, VARIABLES, data, batch_size=3)  # the second batch is filled up
    want = np.mean((solved(cell_parameters(VARIABLES))[:, 0] - LABELS) ** 2)
    assert means["loss_nats"] == pytest.approx(want, rel=1e-4)
    assert "accuracy" not in means and means["converged"] == 1.0
    with pytest.raises(ValueError, match="squared_error must be False with by_labels; got True"):
        make_eval_step(MODEL, squared_error=True, by_labels=True)
    with pytest.raises(ValueError, match=r"shape of the labels, \(5,\); got \(5, 1\)"):
        score_numbers(X, LABELS)


def test_it_has_four_parameters_a_unit_and_starts_almost_flat():
    model = ScalarDEQ(ScalarDEQConfig())
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 200
    p = cell_parameters({"params": params})
    for leaf, bound in (
        (p["up"]["kernel"], 0.1),
        (p["inject"]["kernel"], 1.0),
        (p["inject"]["bias"], 1.0),
        (p["down"]["kernel"], 50**-0.5),
    ):
        assert 0.85 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.25)  # uniform


def test_refused():
    with pytest.raises(ValueError, match="ScalarDEQConfig: hidden must be >= 1; got 0"):
        ScalarDEQConfig(hidden=0)
    with pytest.raises(ValueError, match="ScalarDEQConfig: state_bound must be > 0; got 0.0"):
        ScalarDEQConfig(state_bound=0.0)
    with pytest.raises(ValueError, match=r"x must have the shape \[batch, 1\]; got \(5, 2\)"):
        MODEL.init(jax.random.key(0), np.zeros((5, 2), np.float32))
