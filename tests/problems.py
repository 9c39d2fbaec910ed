"""The table of problems, the solvers and rules that may meet them, and a dense float64 truth.

The truth shares no code with the package: Newton's method with the dense Jacobian of the whole
batch, then one dense solve. Only the derivatives of the map itself come from JAX.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jdeq

ALL = ("picard", "anderson", "restarted", "broyden", "newton")
ACCELERATED = ("anderson", "restarted", "broyden", "newton")
SOLVERS = {
    "picard": jdeq.Picard(),
    "anderson": jdeq.Anderson(),
    "restarted": jdeq.RestartedAnderson(),
    "broyden": jdeq.Broyden(),
    "newton": jdeq.NewtonKrylov(),
}
EXACT_RULES = {"implicit": jdeq.Implicit(), "unrolled": jdeq.Unrolled()}


def legal(solver: str, rule: str) -> bool:
    """Reverse mode cannot pass the inner loop of NewtonKrylov."""
    return not (solver == "newton" and rule == "unrolled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A map with float64 inputs in numpy.

    ``gap`` is ``min |1 - lambda|`` over the spectrum of J at the solution, measured densely in
    test_gradients.py. A residual of relative size tol leaves an error of about tol / gap, so that
    ``slack`` = max(1, 0.05 / gap) is what the asked bounds are multiplied by: 1 for rho <= 0.95.
    """

    name: str
    f: Callable[[Any, Any, Any], Any]
    params: Any
    z0: Any
    x: Any
    gap: float  # measured by tests/test_gradients.py::test_table_states_the_gap
    reason: str
    solvers: tuple[str, ...] = ALL
    contracts: bool = True
    picard_steps: int = 500  # 0.95^500 = 7e-12

    @property
    def slack(self) -> float:
        return max(1.0, 0.05 / self.gap)

    def steps(self, solver: str) -> int:
        # Restarts forget: to 1e-6 in float32 "slow" takes 348 steps with 8 residuals.
        return {"picard": self.picard_steps, "restarted": 300}.get(solver, 150)

    def inputs(self, dtype: Any) -> tuple[Any, Any, Any]:
        """(params, z0, x) in one dtype."""
        cast = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, dtype))
        return cast(self.params), cast(self.z0), cast(self.x)


def affine_map(params, z, x):
    """W z + U x + b."""
    return z @ params["w"].T + x @ params["u"].T + params["b"]


def tanh_map(params, z, x):
    """tanh(W z + U x + b)."""
    return jnp.tanh(z @ params["w"].T + x @ params["u"].T + params["b"])


def tree_map(params, z, x):
    """A nested state whose leaves differ in rank and feed each other."""
    hidden = z["a"] @ params["w"].T + jnp.einsum("bij,kij->bk", z["b"][0], params["v"])
    a = jnp.tanh(hidden + params["b"] + x["p"])
    b = 0.5 * jnp.sin(jnp.einsum("kij,bk->bij", params["v"], z["a"]) + z["b"][0] + x["q"])
    return {"a": a, "b": (b,)}


def with_spectrum(rng, eigenvalues) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    return (q * np.asarray(eigenvalues)) @ q.T


def rotation(rng, angles, radius: float = 0.9) -> np.ndarray:
    """Blocks ``radius x rotation by angle`` in a random orthonormal basis."""
    d = 2 * len(angles)
    blocks = np.zeros((d, d))
    for i, t in enumerate(angles):
        turn = [[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]
        blocks[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = radius * np.array(turn)
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return q @ blocks @ q.T


def random_matrix(rng, d: int, radius: float) -> np.ndarray:
    """Gaussian entries, scaled to this spectral radius."""
    w = rng.standard_normal((d, d))
    return w * radius / np.abs(np.linalg.eigvals(w)).max()


def dense(name: str, f, w, rng, *, batch: int = 4, scale: float = 1.0, **facts) -> Case:
    d = len(w)
    params = {
        "w": w,
        "u": rng.standard_normal((d, d)) / np.sqrt(d),
        "b": 0.1 * scale * rng.standard_normal(d),
    }
    x = scale * rng.standard_normal((batch, d))
    return Case(name=name, f=f, params=params, z0=np.zeros((batch, d)), x=x, **facts)


def pytree_case() -> Case:
    rng = np.random.default_rng(8)
    params = {
        "w": random_matrix(rng, 8, 0.5),
        "v": 0.2 * rng.standard_normal((8, 2, 3)),
        "b": 0.1 * rng.standard_normal(8),
    }
    z0 = {"a": np.zeros((4, 8)), "b": (np.zeros((4, 2, 3)),)}
    x = {"p": rng.standard_normal((4, 8)), "q": rng.standard_normal((4, 2, 3))}
    reason = "rho 0.6; leaves of rank 2 and 3, one norm over both"
    return Case(name="pytree", f=tree_map, params=params, z0=z0, x=x, gap=0.4, reason=reason)


def table() -> dict[str, Case]:
    """Small versions (d = 16) of every kind of problem; A and B in full are below."""
    rng = np.random.default_rng(0)
    d = 16
    cases = [
        dense(
            "affine",
            affine_map,
            random_matrix(rng, d, 0.8),
            rng,
            gap=0.2,
            reason="rho 0.8, not normal: the plain bound",
        ),
        dense(
            "tanh",
            tanh_map,
            random_matrix(rng, d, 0.9),
            rng,
            gap=0.31,
            reason="problem A in small: saturation leaves rho 0.6 at the solution; plain bound",
        ),
        dense(
            "symmetric",
            tanh_map,
            with_spectrum(rng, np.linspace(-0.95, 0.95, d)),
            rng,
            scale=0.1,
            gap=0.1,
            reason="problem B in small: rho 0.92 at the solution; plain bound",
        ),
        dense(
            "rotation",
            affine_map,
            rotation(rng, [1.0] * (d // 2)),
            rng,
            gap=0.9,
            reason="0.9 x rotation by 1 rad: rho 0.9, |1 - lambda| = 0.91; plain bound",
        ),
        dense(
            "complex",
            affine_map,
            rotation(rng, np.linspace(0.3, 3.0, d // 2)),
            rng,
            gap=0.3,
            reason="0.9 x rotations by 0.3 to 3 rad: eight distinct pairs; plain bound",
        ),
        dense(
            "slow",
            affine_map,
            with_spectrum(rng, [0.999, *np.linspace(-0.8, 0.8, d - 1)]),
            rng,
            gap=1e-3,
            picard_steps=24000,  # 0.999^24000 = 4e-11
            reason="lambda 0.999: an error is 1000 residuals, bound in proportion (x 50)",
        ),
        dense(
            "expansive",
            affine_map,
            with_spectrum(rng, [-2.0, 1.6, *np.linspace(-0.6, 0.6, d - 2)]),
            rng,
            gap=0.4,
            solvers=ACCELERATED,
            contracts=False,
            reason="lambda -2 and 1.6: Picard diverges; I - J is well conditioned; plain bound",
        ),
        pytree_case(),
    ]
    return {c.name: c for c in cases}


@functools.cache
def full_a() -> Case:
    """Problem A: random W of spectral radius 0.9, batch 64, d 256."""
    rng = np.random.default_rng(1)
    w = random_matrix(rng, 256, 0.9)
    return dense("A", tanh_map, w, rng, batch=64, gap=0.4, reason="rho 0.63 at the solution")


@functools.cache
def full_b() -> Case:
    """Problem B: symmetric W, eigenvalues within 0.95, small input, batch 64, d 256."""
    rng = np.random.default_rng(2)
    w = with_spectrum(rng, np.linspace(-0.95, 0.95, 256))
    return dense(
        "B", tanh_map, w, rng, batch=64, scale=0.1, gap=0.07, reason="rho 0.92 at the solution"
    )


TABLE = table()


def loss(z, z0):
    """A loss that weighs every entry differently, and reads the initial state beside z."""
    leaves = jax.tree.leaves(z)
    total = sum(
        jnp.sum(a * jnp.cos(1.0 + jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) + 0.1 * a**2)
        for a in leaves
    )
    return total + 0.5 * sum(jnp.sum(a**2) for a in jax.tree.leaves(z0))


def start(params, z0):
    """An initial state that depends on the parameters."""
    return jax.tree.map(lambda a: a + 0.1 * jnp.sum(params["b"]), z0)


def solve_dense(case: Case, params, x):
    """z* and the dense Jacobian of the whole batch, float64 (needs x64 mode)."""
    z0, unravel = ravel_pytree(jax.tree.map(jnp.asarray, case.z0))

    def flat(z):
        return ravel_pytree(case.f(params, unravel(z), x))[0]

    z = z0
    if case.contracts:
        z = jax.lax.fori_loop(0, 200, lambda _, z: flat(z), z)

    def newton(_, z):
        return z + jnp.linalg.solve(jnp.eye(z.size) - jax.jacfwd(flat)(z), flat(z) - z)

    z = jax.lax.fori_loop(0, 10, newton, z)
    return z, unravel, jax.jacfwd(flat)(z), jnp.linalg.norm(flat(z) - z)


def _gradient(case: Case, params, x):
    """Gradient of ``loss(z*, start)`` with respect to (params, x), by one dense solve."""
    z, unravel, jacobian, _ = solve_dense(case, params, x)
    state = unravel(z)
    ct, _ = ravel_pytree(jax.grad(lambda z: loss(z, start(params, case.z0)))(state))
    w = jnp.linalg.solve(jnp.eye(z.size) - jacobian.T, ct)
    _, pull = jax.vjp(lambda p, x: case.f(p, state, x), params, x)
    through_solution = pull(unravel(w))
    direct = jax.grad(lambda p: loss(state, start(p, jax.tree.map(jnp.asarray, case.z0))))(params)
    return jax.tree.map(jnp.add, through_solution[0], direct), through_solution[1]


def _tangent(case: Case, params, x, d_params, d_x):
    """dz* along (d_params, d_x), by one dense solve."""
    z, unravel, jacobian, _ = solve_dense(case, params, x)
    state = unravel(z)
    b = jax.jvp(lambda p, x: case.f(p, state, x), (params, x), (d_params, d_x))[1]
    return unravel(jnp.linalg.solve(jnp.eye(z.size) - jacobian, ravel_pytree(b)[0]))


# Hashed by identity of the case's name: arrays in a dataclass cannot be static arguments.
@functools.cache
def oracle(name: str) -> tuple[Callable, Callable, Callable]:
    """Compiled (solution, gradient, tangent) of a case of the table; call them in x64 mode."""
    case = TABLE[name]
    return (
        jax.jit(functools.partial(solve_dense_outputs, case)),
        jax.jit(functools.partial(_gradient, case)),
        jax.jit(functools.partial(_tangent, case)),
    )


def solve_dense_outputs(case: Case, params, x):
    """(z*, Jacobian, residual norm)."""
    z, unravel, jacobian, residual = solve_dense(case, params, x)
    return unravel(z), jacobian, residual


@functools.cache
def truth(name: str) -> tuple[Any, np.ndarray, Any]:
    """(z*, Jacobian, (d loss / d params, d loss / d x)) of a case, in numpy float64."""
    with jax.enable_x64(True):
        case = TABLE[name]
        params, _, x = case.inputs(jnp.float64)
        solution, gradient, _ = oracle(name)
        z, jacobian, residual = solution(params, x)
        assert residual < 1e-11, (name, residual)
        return jax.tree.map(np.asarray, (z, jacobian, gradient(params, x)))


def error(got, want) -> float:
    """Largest relative error ``||got - want|| / ||want||`` over the leaves."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)) for a, b in pairs
    )


def true_residual(f, params, z, x, ndim: int = 1) -> np.ndarray:
    """``||f(z) - z|| / ||f(z)||`` of each sample, in float64 whatever the inputs are."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (params, z, x))
        params, z, x = wide
        fz = f(params, z, x)

        def squares(tree):
            return sum(
                np.sum(np.asarray(a) ** 2, axis=tuple(range(ndim, a.ndim)))
                for a in jax.tree.leaves(tree)
            )

        absolute = np.sqrt(squares(jax.tree.map(jnp.subtract, fz, z)))
        return absolute / np.sqrt(squares(fz))
