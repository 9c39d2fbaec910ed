"""Spectral radius over families of spectra, adjoint residual, gradient comparison, report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdeq
from jdeq.diagnostics import (
    adjoint_residual,
    convergence_report,
    gradient_cosine,
    leading_eigenvalues,
    spectral_radius,
)

D, SAMPLES = 256, 4


def orthogonal(rng):
    return np.linalg.qr(rng.normal(size=(D, D)))[0]


def dense(rng):
    return rng.normal(size=(D, D)) / D**0.5


def symmetric(rng):
    q = orthogonal(rng)
    return (q * np.linspace(-0.95, 0.95, D)) @ q.T


def rotation(rng):
    del rng
    block = 0.9 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    return np.kron(np.eye(D // 2), block)


def one_modulus(rng):
    return 0.9 * orthogonal(rng)


def non_normal(rng):
    q = orthogonal(rng)
    upper = np.triu(rng.normal(size=(D, D)), 1) / D**0.5
    return q @ (np.diag(rng.uniform(-0.9, 0.9, D)) + upper) @ q.T


def saturated(rng):
    return rng.uniform(0, 1, (D, 1)) * dense(rng)


def two_layers(rng):
    hidden = 2 * D
    active = rng.normal(size=(hidden, 1)) > 0
    first = rng.normal(size=(hidden, D)) / D**0.5
    return rng.normal(size=(D, hidden)) / hidden**0.5 @ (active * first)


def low_rank(rng):
    return rng.normal(size=(D, 10)) @ rng.normal(size=(10, D)) / D


FAMILIES = (
    dense, symmetric, rotation, one_modulus, non_normal, saturated, two_layers, low_rank
)  # fmt: skip


def apply(matrix, z, x):
    """A linear map with a matrix per sample."""
    del x
    return jnp.einsum("...ij,...j->...i", matrix, z)


def true_radius(matrices):
    return np.abs(np.linalg.eigvals(np.asarray(matrices, np.float64))).max(axis=-1)


@jax.jit
def radius(matrices, key):
    z = 0 * matrices[..., 0]  # zeros, placed on the mesh as the matrices are
    return spectral_radius(apply, matrices, z, None, key)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda g: g.__name__)
def test_spectral_radius_within_two_percent(family):
    rng = np.random.default_rng(0)
    matrices = np.stack([family(rng) for _ in range(SAMPLES)])
    for seed in range(2):
        found = radius(jnp.asarray(matrices, jnp.float32), jax.random.key(seed))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, true_radius(matrices), rtol=0.02)


def test_rotation_is_not_its_real_part():
    # A Rayleigh quotient says 0.9 cos(1) = 0.49.
    block = rotation(None)[None, :2, :2].astype(np.float32)
    np.testing.assert_allclose(radius(jnp.asarray(block), jax.random.key(0)), 0.9, rtol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 3, 17])
def test_small_states_are_solved_exactly(d):
    matrices = np.random.default_rng(d).normal(size=(5, d, d))
    found = radius(jnp.asarray(matrices, jnp.float32), jax.random.key(0))
    # float32 eigenvalues of random 17 x 17 matrices.
    np.testing.assert_allclose(found, true_radius(matrices), rtol=1e-3)


def test_zero_and_nilpotent_jacobians():
    zero = jnp.zeros((1, 6, 6))
    np.testing.assert_array_equal(radius(zero, jax.random.key(0)), 0)
    nilpotent = jnp.asarray(np.triu(np.ones((1, 6, 6)), 1), jnp.float32)
    # Eigenvalues of a 6 x 6 Jordan block move by eps^(1/6) = 0.07 under rounding.
    assert radius(nilpotent, jax.random.key(0))[0] < 0.1


def test_samples_are_independent_and_nan_stays_with_its_own():
    rng = np.random.default_rng(1)
    matrices = jnp.asarray(np.stack([dense(rng) for _ in range(3)]), jnp.float32)
    clean = radius(matrices, jax.random.key(0))
    spoiled = radius(matrices.at[1].set(jnp.nan), jax.random.key(0))
    kept = np.array([0, 2])
    np.testing.assert_allclose(clean[kept], spoiled[kept], rtol=1e-6)
    assert np.isnan(spoiled[1])


def test_pytree_states_and_batch_axes():
    half = np.random.default_rng(2).normal(size=(2, 3, 4, 4)) / 2
    matrices = jnp.asarray(half, jnp.float32)

    def pair(params, z, x):
        return {"a": apply(params, z["a"], x), "b": 0.1 * z["b"]}

    z = {"a": jnp.zeros((2, 3, 4)), "b": jnp.zeros((2, 3, 1, 2))}
    found = spectral_radius(pair, matrices, z, None, jax.random.key(0), batch_ndim=2)
    np.testing.assert_allclose(found, np.maximum(true_radius(matrices), 0.1), rtol=1e-3)
    alone = spectral_radius(
        apply, matrices[0, 0], jnp.zeros(4), None, jax.random.key(0), batch_ndim=0
    )
    np.testing.assert_allclose(alone, true_radius(matrices[0, 0]), rtol=1e-3)


def test_double_precision_and_bfloat16():
    matrices = np.stack([dense(np.random.default_rng(3))])
    with jax.enable_x64(True):
        found = radius(jnp.asarray(matrices), jax.random.key(0))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, true_radius(matrices), rtol=0.02)
    found = radius(jnp.asarray(matrices, jnp.bfloat16), jax.random.key(0))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, true_radius(matrices), rtol=0.03)  # 8 bits of mantissa


def test_spectral_radius_is_a_constant_under_grad_vmap_and_shard_map():
    matrices = jnp.asarray(np.random.default_rng(4).normal(size=(8, 1, 5, 5)), jnp.float32)
    key = jax.random.key(0)
    flat = matrices[:, 0]
    gradient = jax.grad(lambda m: jnp.sum(m[0, 0, 0] + radius(m, key)))(flat)
    assert np.count_nonzero(gradient) == 1
    np.testing.assert_allclose(
        jax.vmap(radius, (0, None))(matrices, key)[:, 0], true_radius(flat), rtol=1e-3
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    sharded = jax.shard_map(radius, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    np.testing.assert_allclose(sharded(flat, key), true_radius(flat), rtol=1e-3)


def test_spectral_radius_needs_a_product():
    with pytest.raises(ValueError, match="spectral_radius: num_products must be >= 1; got 0"):
        spectral_radius(apply, jnp.eye(2)[None], jnp.zeros((1, 2)), None, jax.random.key(0),
                        num_products=0)  # fmt: skip


def tanh(params, z, x):
    return jnp.tanh(z @ params.T + x)


def problem(dtype=jnp.float32):
    rng = np.random.default_rng(5)
    params = rng.normal(size=(6, 6))
    params = 0.8 * params / np.linalg.norm(params, 2)
    return jnp.asarray(params, dtype), jnp.asarray(rng.normal(size=(4, 6)), dtype)


def test_adjoint_residual_against_a_dense_solve():
    with jax.enable_x64(True):
        params, x = problem(jnp.float64)
        z = jdeq.fixed_point(tanh, params, jnp.zeros_like(x), x, rtol=1e-13, max_steps=200).z
        jacobian = (1 - np.asarray(tanh(params, z, x)) ** 2)[:, :, None] * np.asarray(params)
        ct = np.random.default_rng(6).normal(size=z.shape)
        image = np.einsum("bij,bi->bj", jacobian, ct)
        exact = np.linalg.solve(
            np.eye(6) - jacobian.transpose(0, 2, 1), ct[..., None]
        )[..., 0]  # fmt: skip
        assert adjoint_residual(tanh, params, z, x, exact, ct).max() < 1e-14
        first = adjoint_residual(tanh, params, z, x, jnp.asarray(ct), ct)
        expected = np.linalg.norm(image, axis=1) / np.linalg.norm(image + ct, axis=1)
        np.testing.assert_allclose(first, expected, rtol=1e-12)
    zero = jnp.zeros((4, 6))
    params, x = problem()
    half = zero.astype(jnp.bfloat16)  # a map that answers in float32 is cast, as fixed_point does
    assert adjoint_residual(tanh, params, half, x, 1 + half, half).dtype == jnp.float32
    np.testing.assert_array_equal(adjoint_residual(tanh, params, zero, x, zero, zero), 0)


def quadratic(z):
    return jnp.sum(z**2)


def test_gradient_cosine_orders_the_rules():
    params, x = problem()
    z0 = jnp.zeros_like(x)
    loose, tight, one = (
        gradient_cosine(tanh, params, z0, x, quadratic, gradient=rule, rtol=rtol)
        for rule, rtol in (
            (jdeq.Implicit(), 1e-2), (jdeq.Implicit(), 1e-6), (jdeq.OneStep(), 1e-6)
        )
    )  # fmt: skip
    assert tight.cosine > 1 - 1e-6 and tight.relative_error < 1e-5
    assert tight.relative_error < loose.relative_error < one.relative_error
    assert 0.5 < one.cosine < 0.9999 and loose.cosine > one.cosine
    # A thousandth of rtol, but not below 16 times the resolution of float32, 1e-6.
    assert loose.reference_residual <= 1e-5
    assert max(tight.reference_residual, one.reference_residual) <= 1e-6


def test_gradient_cosine_in_float64():
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: a.astype("float64"), problem())
        found = gradient_cosine(tanh, params, jnp.zeros_like(x), x, quadratic, rtol=1e-8)
        assert found.relative_error < 1e-7 and found.reference_residual < 1e-10


def test_gradient_cosine_against_hand_made_gradients():
    params, x = problem()
    z0 = jnp.zeros_like(x)

    def gradient(rule, rtol):
        def value(p):
            sol = jdeq.fixed_point(tanh, p, z0, x, gradient=rule, rtol=rtol, max_steps=200)
            return quadratic(sol.z)

        return np.asarray(jax.grad(value)(params)).ravel()

    ours, exact = gradient(jdeq.OneStep(), 1e-5), gradient(jdeq.Implicit(), 1e-6)
    found = gradient_cosine(
        tanh, params, z0, x, quadratic, gradient=jdeq.OneStep(), rtol=1e-5, max_steps=200
    )
    cosine = ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-4)
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(found.relative_error, error, rtol=1e-3)


def test_gradient_cosine_says_when_the_reference_is_not_to_be_trusted():
    params, x = problem()
    found = gradient_cosine(
        tanh, 3 * params, jnp.zeros_like(x), x, quadratic, solver=jdeq.Picard(), max_steps=1
    )
    assert found.reference_residual > 1e-5
    zero = gradient_cosine(tanh, params, jnp.zeros_like(x), x, lambda z: 0.0 * jnp.sum(z))
    assert zero.cosine == 1 and zero.relative_error == 0
    with pytest.raises(ValueError, match=r"tighten must lie in \(0, 1\); got 1.0"):
        gradient_cosine(tanh, params, x, x, quadratic, tighten=1.0)


@pytest.mark.parametrize("scale", [1e-24, 1e-20, 1e20])
def test_residuals_and_errors_do_not_depend_on_the_scale_of_the_loss(scale):
    """float32 holds these cotangents, not their squares: 0 / 0 must not stand for perfection."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(0.9 * np.linalg.qr(rng.standard_normal((8, 8)))[0], jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 8)), jnp.float32)
    z0 = jnp.zeros_like(x)

    def f(w, z, x):
        return jnp.tanh(z @ w.T + x)

    def measured(scale):
        z = jdeq.fixed_point(f, w, z0, x, rtol=1e-5, max_steps=100).z
        ct = jnp.full_like(x, scale)

        def loss(probe):
            sol = jdeq.fixed_point(
                f, w, z0, x, solver=jdeq.Broyden(), gradient=jdeq.SharedInverse(), probe=probe
            )
            return scale * jnp.sum(sol.z)

        def total(z):
            return scale * jnp.sum(z @ jnp.arange(8.0))

        return (
            adjoint_residual(f, w, z, x, 0.5 * ct, ct),
            jax.grad(loss)(jdeq.backward_probe())[1],
            *gradient_cosine(f, w, z0, x, total, gradient=jdeq.OneStep())[:2],
        )

    for got, want in zip(measured(scale), measured(1.0), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)
        assert np.all(want > 0.1)


def test_no_samples():
    empty = jnp.zeros((0, 3))
    sol = jdeq.fixed_point(lambda p, z, x: p * z + x, 0.5, empty, empty)
    assert convergence_report(jdeq.check(sol)) == "0 samples"


def test_convergence_report():
    stats = jdeq.SolverStats(
        jnp.array([4, 7, 40, 9]), jnp.array([1e-4, 2e-4, 0.021, 5e-4]), jnp.array([0, 0, 1, 0])
    )
    report = convergence_report(jdeq.Solution(jnp.zeros((4, 1)), stats, None))
    assert report == (
        "4 samples: 3 CONVERGED, 1 MAX_STEPS\n"
        "nfe 4 / 8 / 40 (min / median / max), residual at most 2.1e-02"
    )
    one = jdeq.fixed_point(lambda p, z, x: 0.5 * z + x, None, jnp.zeros(3), jnp.ones(3),
                           batch_ndim=0)  # fmt: skip
    assert convergence_report(one).startswith("1 sample: 1 CONVERGED\nnfe ")


def eigenvalues(matrices, **options):
    z = jnp.zeros(matrices.shape[:-1], matrices.dtype)
    return leading_eigenvalues(apply, matrices, z, None, jax.random.key(0), **options)


def test_leading_eigenvalues_of_small_samples_are_those_of_the_dense_jacobian():
    matrices = np.random.default_rng(5).normal(size=(3, 12, 12))
    with jax.enable_x64(True):
        found = eigenvalues(jnp.asarray(matrices), count=12, num_products=20)
    assert found.values.shape == (3, 12) and np.all(found.residual == 0)
    assert np.all(np.diff(np.abs(found.values), axis=1) < 1e-12)
    for ours, true in zip(found.values, np.linalg.eigvals(matrices), strict=True):
        apart = np.abs(ours[:, None] - true[None])
        assert apart.min(axis=0).max() < 1e-10 and apart.min(axis=1).max() < 1e-10


def beside_the_identity(scale, *further):
    rng = np.random.default_rng(8)
    q = np.linalg.qr(rng.normal(size=(128, len(further))))[0]
    return scale * np.eye(128) + (q * further) @ q.T


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (0.5 * np.eye(4), [0.5, np.nan, np.nan, np.nan]),
        (np.diag([0.9, 0.9, 0.3, 0.1]), [0.9, 0.3, 0.1, np.nan]),
        (np.zeros((4, 4)), [0.0, np.nan, np.nan, np.nan]),
        (np.diag([0.9, 0.0, 0.3, 0.1]), [0.9, 0.3, 0.1, 0.0]),
        (np.array([[0.7]]), [0.7]),
        (beside_the_identity(0.3, 0.6, -0.5), [0.9, 0.3, -0.2, np.nan, np.nan, np.nan]),
    ],
    ids=["identity", "twice", "zero", "singular", "one entry", "low rank"],
)
def test_leading_eigenvalues_are_only_those_that_there_are(matrix, expected):
    """One of 0 where J has it; none of the vectors that are missing once the space has ended."""
    found = eigenvalues(jnp.asarray(matrix[None], jnp.float32), count=6)
    np.testing.assert_allclose(found.values[0], np.array(expected) + 0j, atol=2e-6)
    np.testing.assert_array_equal(found.residual[0], np.where(np.isnan(expected), np.nan, 0.0))


def test_leading_eigenvalues_that_rounding_adds_are_those_of_the_jacobian():
    """Vectors of a small height are noisy: the space goes on, within the many of 0.8."""
    matrix = beside_the_identity(0.8, 0.057, 0.045)
    found = eigenvalues(jnp.asarray(matrix[None], jnp.float32), count=6)
    there = found.values[0][np.isfinite(found.values[0])]
    assert 3 <= len(there) < 6
    expected = [0.857, 0.845] + [0.8] * (len(there) - 2)
    np.testing.assert_allclose(there, np.array(expected) + 0j, atol=2e-6)


def test_leading_eigenvalues_end_in_each_sample_where_its_own_space_does():
    matrices = np.stack([np.diag([0.4, 0.4, 0.2]), np.diag([0.6, 0.5, 0.1])])
    found = eigenvalues(jnp.asarray(matrices[:, None], jnp.float32), batch_ndim=2)
    expected = np.array([[[0.4, 0.2, np.nan]], [[0.6, 0.5, 0.1]]]) + 0j
    np.testing.assert_allclose(found.values, expected, atol=2e-6)


def test_leading_eigenvalues_of_large_samples_are_as_near_as_their_residual_says():
    """Of a normal matrix an eigenvalue lies within the residual; pairs far out come first."""
    rng = np.random.default_rng(6)
    q = orthogonal(rng)
    sizes = np.concatenate([[2.0, 1.5], rng.uniform(0, 0.7, D // 2 - 2)])
    angles = rng.uniform(0.2, 2.9, D // 2)
    blocks = np.zeros((D, D))
    for k, (size, angle) in enumerate(zip(sizes, angles, strict=True)):
        c, s = size * np.cos(angle), size * np.sin(angle)
        blocks[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, -s], [s, c]]
    matrix = q @ blocks @ q.T
    found = eigenvalues(jnp.asarray(matrix[None], jnp.float32), count=8, num_products=40)
    true = np.linalg.eigvals(matrix)
    near = np.abs(found.values[0][:, None] - true[None]).min(axis=1)
    assert np.all(near <= found.residual[0] + 1e-5)
    np.testing.assert_allclose(np.abs(found.values[0, :4]), [2, 2, 1.5, 1.5], rtol=1e-5)
    assert np.all(found.residual[0, :4] < 1e-5) and found.residual[0, -1] > 1e-3


def test_leading_eigenvalues_keep_samples_apart_and_name_what_is_wrong():
    matrices = jnp.asarray(np.random.default_rng(7).normal(size=(2, 3, 3)), jnp.float32)
    found = eigenvalues(matrices.at[1, 0, 0].set(jnp.nan), count=2, num_products=3)
    assert np.all(np.isnan(found.values[1])) and np.all(np.isnan(found.residual[1]))
    expected = np.sort(np.abs(np.linalg.eigvals(np.asarray(matrices[0]))))[::-1][:2]
    np.testing.assert_allclose(np.abs(found.values[0]), expected, rtol=1e-4)
    for options, message in (
        ({"count": 0}, "count must be >= 1; got 0"),
        ({"count": 4, "num_products": 4}, "num_products must be >= 5; got 4"),
    ):
        with pytest.raises(ValueError, match=f"leading_eigenvalues: {message}"):
            eigenvalues(matrices, **options)


def test_a_radius_whose_square_is_no_float_is_not_told():
    jacobian = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    z = jnp.ones((1, 24))
    for scale, told in ((1e-10, True), (1.0, True), (1e30, False)):
        radius = jdeq.spectral_radius(
            lambda p, z, x: z @ p.T + x, scale * jacobian, z, z, jax.random.key(0)
        )[0]
        truth = scale * np.abs(np.linalg.eigvals(jacobian.astype(np.float64))).max()
        assert np.isclose(radius, truth, rtol=1e-3) if told else np.isnan(radius)
