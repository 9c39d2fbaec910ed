"""Jacobian penalty against dense Jacobians, its schedule, and fixed-point correction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq

BATCH, D, KEYS = 3, 8, 1000


def f(params, z, x):
    return jnp.tanh(z @ params.T + x)


W = 0.9 * jax.random.normal(jax.random.key(0), (D, D)) / D**0.5
Z = jax.random.normal(jax.random.key(1), (BATCH, D))
X = jax.random.normal(jax.random.key(2), (BATCH, D))
MANY = jax.random.split(jax.random.key(3), KEYS)


def dense_penalty(params, z, x):
    """||J||_F^2 / d with J = diag(1 - f(z)^2) W written out."""
    slope = 1 - f(params, z, x) ** 2
    return jnp.sum((slope[:, :, None] * params) ** 2, axis=(1, 2)) / D


def deviations(samples, expected):
    """Distance of the mean from what is expected, in standard errors."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    return np.abs(samples.mean(axis=0) - np.asarray(expected)) / error


@pytest.mark.parametrize("num_probes", [1, 3])
def test_penalty_is_unbiased_per_sample(num_probes):
    estimate = jax.vmap(lambda k: jdeq.jacobian_penalty(f, W, Z, X, k, num_probes=num_probes))
    samples = estimate(MANY)
    assert samples.shape == (KEYS, BATCH)
    # Four standard errors: a sound estimator fails one seed in 5,000.
    assert deviations(samples, dense_penalty(W, Z, X)).max() < 4
    # The bound above means something: the standard error is a few percent.
    assert (np.std(samples, axis=0) / KEYS**0.5 < 0.04 * np.mean(samples, axis=0)).all()


def test_more_probes_divide_the_variance():
    one, four = (
        np.var(jax.vmap(lambda k, m=m: jdeq.jacobian_penalty(f, W, Z, X, k, num_probes=m))(MANY), 0)
        for m in (1, 4)
    )
    np.testing.assert_allclose(one / four, 4, rtol=0.35)  # variances of 1000 draws: 5 to 10% each


def test_penalty_gradient_reaches_params_at_fixed_state():
    gradient = jax.grad(lambda p, k: jnp.sum(jdeq.jacobian_penalty(f, p, Z, X, k)))
    samples = jax.vmap(gradient, (None, 0))(W, MANY)
    expected = jax.grad(lambda p: jnp.sum(dense_penalty(p, Z, X)))(W)
    assert deviations(samples, expected).max() < 4.5  # the largest of 64 entries
    at_state = jax.grad(lambda z: jnp.sum(jdeq.jacobian_penalty(f, W, z, X, MANY[0])))(Z)
    np.testing.assert_array_equal(at_state, 0)


def test_penalty_is_exact_for_a_scalar_multiple_of_the_identity_with_its_own_probe():
    # eps^T (a I) = a eps: the penalty of two multiples with one key differ by the square exactly.
    def value(a):
        return jdeq.jacobian_penalty(lambda p, z, x: p * z, a, Z, X, MANY[0])

    np.testing.assert_allclose(value(0.5) / value(1.0), 0.25, rtol=1e-6)


def test_penalty_of_a_sample_ignores_its_batch_mates():
    other = Z.at[1].set(jnp.nan)
    alone = jdeq.jacobian_penalty(f, W, Z, X, MANY[0])
    mixed = jdeq.jacobian_penalty(f, W, other, X, MANY[0])
    np.testing.assert_array_equal(alone[np.array([0, 2])], mixed[np.array([0, 2])])
    assert np.isnan(mixed[1])


def test_penalty_of_pytree_states_and_without_a_batch_axis():
    def pair(params, z, x):
        return {"a": f(params, z["a"], x), "b": 0.5 * z["b"]}

    z = {"a": Z[0], "b": jnp.ones((2, 2))}
    samples = jax.vmap(lambda k: jdeq.jacobian_penalty(pair, W, z, X[0], k, batch_ndim=0))(MANY)
    assert samples.shape == (KEYS,)
    # ||0.5 I_4||_F^2 = 1, and d is 8 + 4.
    expected = (dense_penalty(W, Z, X)[0] * D + 1.0) / (D + 4)
    assert deviations(samples, expected) < 4


def test_penalty_needs_a_probe():
    with pytest.raises(ValueError, match="num_probes must be >= 1; got 0"):
        jdeq.jacobian_penalty(f, W, Z, X, MANY[0], num_probes=0)


def test_schedule_applies_with_the_asked_probability():
    schedule = jdeq.JacobianSchedule(weight=1.0, probability=0.35, seed=1)
    share = np.mean([schedule.active(step) for step in range(4000)])
    assert abs(share - 0.35) < 4 * (0.35 * 0.65 / 4000) ** 0.5
    assert all(jdeq.JacobianSchedule(weight=1.0).active(step) for step in range(50))
    assert not any(jdeq.JacobianSchedule(weight=1.0, probability=0.0).active(s) for s in range(50))


def test_schedule_depends_on_seed_and_step_only():
    draws = [
        [jdeq.JacobianSchedule(weight=1.0, probability=0.5, seed=seed).active(s) for s in range(64)]
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    # Pinned: a resumed run, on another machine too, makes the same choices.
    first = jdeq.JacobianSchedule(weight=1.0, probability=0.5)
    assert [first.active(s) for s in (5, 3, 5)] == [draws[0][5], draws[0][3], draws[0][5]]


def test_schedule_grows_between_start_and_stop():
    schedule = jdeq.JacobianSchedule(
        weight=0.5, growth=0.1, growth_every=100, start=1000, stop=1300
    )
    steps = (0, 999, 1000, 1099, 1100, 1299, 1300)
    weights = [schedule.weight_at(step) for step in steps]
    np.testing.assert_allclose(weights, [0, 0, 0.5, 0.5, 0.6, 0.7, 0], rtol=1e-12)
    assert [schedule.active(step) for step in steps] == [w > 0 for w in weights]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, r"weight must be finite and >= 0; got -1.0"),
        ({"weight": float("nan")}, r"weight must be finite and >= 0; got nan"),
        ({"weight": float("inf")}, r"weight must be finite and >= 0; got inf"),
        ({"weight": 1.0, "start": -1}, r"start must be >= 0; got -1"),
        ({"weight": 1.0, "probability": 1.5}, r"probability must lie in \[0, 1\]; got 1.5"),
        ({"weight": 1.0, "growth": -0.1}, r"growth must be finite and >= 0; got -0.1"),
        ({"weight": 1.0, "growth": 0.1}, r"growth_every must be >= 1 where growth > 0; got 0"),
        ({"weight": 1.0, "start": 5, "stop": 4}, r"stop must be >= start=5; got 4"),
    ],
)
def test_schedule_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"jdeq.JacobianSchedule: {message}"):
        jdeq.JacobianSchedule(**options)


def loss(z):
    return jnp.sum(z**2)


def test_correction_weights_the_chosen_states():
    value = jdeq.fixed_point_correction(f, W, Z, X, loss, steps=5, every=2, decay=0.5)
    states = [Z]
    for _ in range(5):
        states.append(f(W, states[-1], X))
    expected = 0.25 * loss(states[2]) + 0.5 * loss(states[4]) + loss(states[5])
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_correction_differentiates_one_step_of_each_state():
    gradient = jax.grad(
        lambda p: jdeq.fixed_point_correction(f, p, Z, X, loss, steps=3, decay=0.5)
    )(W)
    states = [Z]
    for _ in range(2):
        states.append(f(W, states[-1], X))
    steps = [jax.grad(lambda p, z=z: loss(f(p, z, X)))(W) for z in states]
    expected = 0.25 * steps[0] + 0.5 * steps[1] + steps[2]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps and every must be >= 1; got 0 and 1"),
        ({"steps": 2, "every": 0}, "steps and every must be >= 1; got 2 and 0"),
        ({"steps": 2, "decay": 0.0}, r"decay must lie in \(0, 1\]; got 0.0"),
    ],
)
def test_correction_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"jdeq.fixed_point_correction: {message}"):
        jdeq.fixed_point_correction(f, W, Z, X, loss, **options)
