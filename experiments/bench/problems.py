"""The maps that are timed, and a dense float64 truth that no entry shares code with.

Problems A and B are ``f(params, z, x) = tanh(W z + U x + b)``, 64 samples of width 256 in float32.
A: random W scaled to spectral radius 0.9 (about 0.6 at z*). B: symmetric W with eigenvalues within
0.95 and a small input (about 0.92 at z*), where plain iteration is slow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A map with its inputs; ``size`` and ``spectral_radius`` describe it in the report."""

    name: str
    f: Callable[[Any, Any, Any], Any]
    params: dict[str, jax.Array]
    z0: jax.Array
    x: jax.Array
    size: str
    spectral_radius: float | None = None


def tanh_map(params, z, x):
    """tanh(W z + U x + b) for a batch of rows."""
    return jnp.tanh(z @ params["w"].T + x @ params["u"].T + params["b"])


def two_layer_map(params, z, x):
    """tanh(tanh(z W1) W2 + x) over tokens, float32[batch, tokens, width]."""
    return jnp.tanh(jnp.tanh(z @ params["w1"]) @ params["w2"] + x)


def loss_of(z):
    """The loss of every value_and_grad case: the mean square of the state."""
    return jnp.mean(z**2)


def _tanh_problem(name: str, w: np.ndarray, scale: float, batch: int, rng) -> Problem:
    width = w.shape[0]
    params = {
        "w": w,
        "u": rng.standard_normal((width, width)) / np.sqrt(width),
        "b": 0.1 * scale * rng.standard_normal(width),
    }
    x = scale * rng.standard_normal((batch, width))
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    x = jnp.asarray(x, jnp.float32)
    truth = Truth(params, x)
    return Problem(
        name=name,
        f=tanh_map,
        params=params,
        z0=jnp.zeros((batch, width), jnp.float32),
        x=x,
        size=f"batch {batch}, width {width}",
        spectral_radius=truth.spectral_radius(),
    )


def problem_a(batch: int = 64, width: int = 256) -> Problem:
    """Random W of spectral radius 0.9."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((width, width))
    w *= 0.9 / np.abs(np.linalg.eigvals(w)).max()
    return _tanh_problem("A", w, 1.0, batch, rng)


def problem_b(batch: int = 64, width: int = 256) -> Problem:
    """Symmetric W with eigenvalues spread over [-0.95, 0.95], small input."""
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.standard_normal((width, width)))
    w = (q * np.linspace(-0.95, 0.95, width)) @ q.T
    return _tanh_problem("B", w, 0.1, batch, rng)


def two_layer(batch: int, tokens: int, width: int, hidden: int) -> Problem:
    """A two-layer map whose linear part has spectral norm 0.9."""
    rng = np.random.default_rng(2)
    w1 = rng.standard_normal((width, hidden)) / np.sqrt(width)
    w2 = rng.standard_normal((hidden, width)) / np.sqrt(hidden)
    w2 *= 0.9 / np.linalg.norm(w1 @ w2, 2)
    x = 0.1 * rng.standard_normal((batch, tokens, width))
    return Problem(
        name=f"two-layer {batch}x{tokens}x{width}",
        f=two_layer_map,
        params={"w1": jnp.asarray(w1, jnp.float32), "w2": jnp.asarray(w2, jnp.float32)},
        z0=jnp.zeros((batch, tokens, width), jnp.float32),
        x=jnp.asarray(x, jnp.float32),
        size=f"batch {batch} x {tokens} tokens, width {width}, hidden {hidden}",
    )


def transformer_cell(batch: int, tokens: int, width: int, heads: int) -> tuple:
    """A causal pre-LN transformer block as ``(f, params, z0, x)``; hidden width 4 x width."""
    rng = np.random.default_rng(3)

    def matrix(rows, columns):
        return jnp.asarray(0.3 * rng.standard_normal((rows, columns)) / np.sqrt(rows), jnp.float32)

    params = {
        "qkv": matrix(width, 3 * width),
        "out": matrix(width, width),
        "up": matrix(width, 4 * width),
        "down": matrix(4 * width, width),
    }

    def norm(a):
        a = a - jnp.mean(a, axis=-1, keepdims=True)
        return a * jax.lax.rsqrt(jnp.mean(a**2, axis=-1, keepdims=True) + 1e-5)

    def f(params, z, x):
        q, k, v = jnp.split(norm(z + x) @ params["qkv"], 3, axis=-1)
        split = (*z.shape[:2], heads, width // heads)
        mixed = jax.nn.dot_product_attention(
            q.reshape(split), k.reshape(split), v.reshape(split), is_causal=True
        )
        z = z + mixed.reshape(z.shape) @ params["out"]
        return norm(z + jax.nn.gelu(norm(z) @ params["up"]) @ params["down"])

    x = jnp.asarray(rng.standard_normal((batch, tokens, width)), jnp.float32)
    return f, params, jnp.zeros_like(x), x


class Truth:
    """z* and the gradient of ``loss_of(z*)`` for `tanh_map`, by dense float64 algebra in numpy.

    Newton's method on every sample, then one dense solve of ``(I - J^T) v = dL/dz`` a sample.
    """

    def __init__(self, params, x):
        self.w, self.u, self.b, self.x = (
            np.asarray(a, np.float64) for a in (params["w"], params["u"], params["b"], x)
        )
        z = np.zeros((self.x.shape[0], self.w.shape[0]))
        for _ in range(100):  # into Newton's basin
            z = self._f(z)
        for _ in range(20):
            newton = np.eye(z.shape[1]) - self._jacobian(z)
            step = np.linalg.solve(newton, (self._f(z) - z)[:, :, None])[:, :, 0]
            z = z + step
            if np.abs(step).max() < 1e-13:
                break
        else:
            raise RuntimeError("experiments.bench: Newton's method did not solve the reference")
        self.z = z

    def _f(self, z):
        return np.tanh(z @ self.w.T + self.x @ self.u.T + self.b)

    def _jacobian(self, z):
        """float64[batch, d, d]"""
        return (1 - self._f(z) ** 2)[:, :, None] * self.w

    def spectral_radius(self) -> float:
        """The largest |eigenvalue| of J at z*, over the first 8 samples."""
        return float(np.abs(np.linalg.eigvals(self._jacobian(self.z)[:8])).max())

    def residual(self, z) -> dict[str, float]:
        """||f(z) - z|| / ||f(z)|| of a state: the worst sample, and over the whole batch."""
        z = np.asarray(z, np.float64)
        fz = self._f(z)
        error, size = np.linalg.norm(fz - z, axis=1), np.linalg.norm(fz, axis=1)
        return {
            "residual_worst_sample": float((error / size).max()),
            "residual_batch": float(np.linalg.norm(error) / np.linalg.norm(size)),
        }

    def gradient(self) -> dict[str, np.ndarray]:
        """The gradient of ``loss_of(z*)`` with respect to w, u and b."""
        adjoint = np.eye(self.z.shape[1]) - np.swapaxes(self._jacobian(self.z), 1, 2)
        cotangent = 2 * self.z / self.z.size
        v = np.linalg.solve(adjoint, cotangent[:, :, None])[:, :, 0] * (1 - self.z**2)
        return {"w": v.T @ self.z, "u": v.T @ self.x, "b": v.sum(0)}

    def gradient_error(self, gradient) -> float:
        """||g - g*|| / ||g*|| over all parameters."""
        truth = self.gradient()
        error = sum(np.sum((np.asarray(gradient[k], np.float64) - truth[k]) ** 2) for k in truth)
        return float(np.sqrt(error / sum(np.sum(g**2) for g in truth.values())))
