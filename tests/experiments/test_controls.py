"""The controls against dense matrices, and in the loss of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from experiments import controls
from experiments.build import build
from experiments.config_errors import ConfigError
from experiments.config_files import load_run
from experiments.regularizer_config import RegularizerConfig
from experiments.spectrum import frobenius_norm
from jdeq.training import equilibrium_of

MATRICES = 0.7 * jax.random.normal(jax.random.key(0), (3, 5, 5))
ANGLE = 1.0
ROTATION = 0.9 * jnp.array(
    [[jnp.cos(ANGLE), -jnp.sin(ANGLE)], [jnp.sin(ANGLE), jnp.cos(ANGLE)]]
)  # eigenvalues 0.9 exp(+-i)
UNSEEN = jnp.array([[2.0, -2.0], [-2.0, 2.0]])  # section 2.2 of the paper


def linear(params, z, x):
    """Every sample has a matrix of its own: J = params[sample]."""
    return jnp.einsum("bij,bj->bi", params, z) + x


def measured(estimate, matrices, **options):
    z = jnp.zeros(matrices.shape[:2])
    return estimate(linear, matrices, z, z, jax.random.key(1), **options)


def test_column_sums_by_hand():
    sums = np.asarray(MATRICES).sum(axis=1)
    expected = (np.maximum(sums - 0.9, 0) ** 2).mean(axis=1)
    assert (expected > 0).any()
    np.testing.assert_allclose(measured(controls.column_sum_penalty, MATRICES), expected, rtol=1e-5)
    larger = measured(controls.column_sum_penalty, MATRICES, level=-1.0)
    np.testing.assert_allclose(
        larger, (np.maximum(sums + 1.0, 0) ** 2).mean(axis=1), rtol=1e-5, atol=1e-7
    )


def test_column_sums_do_not_see_an_eigenvalue_of_4():
    assert measured(controls.column_sum_penalty, UNSEEN[None]) == 0
    assert np.abs(np.linalg.eigvals(UNSEEN)).max() == pytest.approx(4)
    # nor does their gradient; that of the Jacobian penalty does
    gradient = jax.grad(lambda m: measured(controls.column_sum_penalty, m).sum())(UNSEEN[None])
    assert (gradient == 0).all()
    ours = jax.grad(lambda m: measured(jdeq.jacobian_penalty, m).sum())(UNSEEN[None])
    assert jnp.abs(ours).max() > 0.1


def test_the_quotient_is_right_for_a_real_eigenvalue():
    symmetric = MATRICES + MATRICES.transpose(0, 2, 1)
    expected = np.abs(np.linalg.eigvalsh(symmetric)).max(axis=1)
    found = measured(controls.rayleigh_quotient, symmetric)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_quotient_is_wrong_for_a_complex_pair_and_ours_is_not():
    found = measured(controls.rayleigh_quotient, ROTATION[None])
    np.testing.assert_allclose(found, 0.9 * np.cos(ANGLE), rtol=1e-5)  # 0.49
    np.testing.assert_allclose(measured(jdeq.spectral_radius, ROTATION[None]), 0.9, rtol=1e-3)
    with pytest.raises(ValueError, match="num_products must be >= 1; got 0"):
        measured(controls.rayleigh_quotient, ROTATION[None], num_products=0)
    with pytest.raises(ValueError, match="num_products must be an integer >= 1; got 2.5"):
        measured(controls.rayleigh_quotient, ROTATION[None], num_products=2.5)


def test_the_norm_of_the_records():
    expected = np.sqrt((np.asarray(MATRICES) ** 2).sum(axis=(1, 2)))
    # 2000 probes of a chi-square of about two degrees: within 3% four times in five
    found = measured(frobenius_norm, MATRICES, num_probes=2000)
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_a_penalty_of_no_weight_is_refused():
    config = RegularizerConfig(kind="column_sum")
    with pytest.raises(ConfigError, match="regularizer.gamma must be > 0 where kind is 'column_s"):
        config.build(start=0, seed=0)


def test_a_run_is_penalised_by_what_it_says():
    """The penalty of a step, against the one computed from the state that the solve returned."""
    config = load_run("digits_mdeq")
    assert build(config).model.penalty is None
    model = dataclasses.replace(
        config.model, channels=(4,), head_channels=(2,), head_features=8, expansion=1, groups=2
    )
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(model, dropout=0.0),
        regularizer=dataclasses.replace(config.regularizer, kind="column_sum"),
    )
    run = build(config)
    state, batch = run.initial_state(), run.task.batches(0)

    @jax.jit
    def both(state, batch):
        options = {"key": jax.random.key(0), "probe": jdeq.backward_probe(), "penalize": True}
        out = run.loss(run.model)(state.params, state.model_state, batch, **options)
        f, params, _, x, z = equilibrium_of(run.model, state.variables, batch.inputs)
        return out.penalty, controls.column_sum_penalty(f, params, z, x).mean()

    np.testing.assert_allclose(*both(state, batch), rtol=1e-3)
