"""Dense float64 truths: z*, its Jacobian, and the gradient of the loss, by Newton's method on every
sample and one dense solve of ``(I - J^T) v = dL/dz`` a sample. No entry shares code with them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHECKED = 4
"""Samples whose spectrum is taken."""


class Truth(ABC):
    """The truth of one batch; states are flattened to float64[batch, d].

    Args:
      z: where Newton's method starts.
      power: of the loss, the mean of that power of the state.
    Raises:
      RuntimeError: if that does not end at a fixed point.
    """

    def __init__(self, z: np.ndarray, *, power: int = 2):
        for _ in range(30):
            newton = np.eye(z.shape[1]) - self.jacobian(z)
            step = np.linalg.solve(newton, (self.map(z) - z)[:, :, None])[:, :, 0]
            z = z + step
            if np.abs(step).max() < 1e-12 * max(1.0, np.abs(z).max()):
                break
        else:
            raise RuntimeError("experiments.bench: Newton's method did not solve the reference")
        self.z = z
        self.power = power
        self._jacobian = self.jacobian(z)
        self._gradient = None

    @abstractmethod
    def map(self, z: np.ndarray) -> np.ndarray:
        """f of a flat state."""

    @abstractmethod
    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """float64[batch, d, d]"""

    @abstractmethod
    def pull(self, v: np.ndarray) -> Any:
        """``v^T df/dparams`` at z*, summed over the samples."""

    def spectral_radius(self) -> float:
        """The largest |eigenvalue| of J at z*, over the first samples."""
        return float(np.abs(np.linalg.eigvals(self._jacobian[:CHECKED])).max())

    def amplification(self) -> float:
        """``||(I - J)^-1||_2`` at z*, over the first samples: what a residual, or an error of the
        right-hand side of the adjoint system, may be multiplied by.
        """
        matrices = np.eye(self.z.shape[1]) - self._jacobian[:CHECKED]
        return float(1 / np.linalg.svd(matrices, compute_uv=False).min())

    def residual(self, z: Any) -> dict[str, float]:
        """||f(z) - z|| / ||f(z)|| of a state: the worst sample, and over the whole batch."""
        z = flat(z)
        fz = self.map(z)
        error, size = np.linalg.norm(fz - z, axis=1), np.linalg.norm(fz, axis=1)
        return {
            "residual_worst_sample": float((error / size).max()),
            "residual_batch": float(np.linalg.norm(error) / np.linalg.norm(size)),
        }

    def gradient(self) -> Any:
        """The gradient of ``loss_of(z*, power)`` with respect to params."""
        if self._gradient is None:
            adjoint = np.eye(self.z.shape[1]) - np.swapaxes(self._jacobian, 1, 2)
            cotangent = self.power * self.z ** (self.power - 1) / self.z.size
            self._gradient = self.pull(np.linalg.solve(adjoint, cotangent[:, :, None])[:, :, 0])
        return self._gradient

    def gradient_error(self, gradient: Any) -> float:
        """||g - g*|| / ||g*|| over all parameters."""
        truth = [np.asarray(a, np.float64) for a in jax.tree.leaves(self.gradient())]
        given = [np.asarray(a, np.float64) for a in jax.tree.leaves(gradient)]
        error = sum(np.sum((a - b) ** 2) for a, b in zip(given, truth, strict=True))
        return float(np.sqrt(error / sum(np.sum(b**2) for b in truth)))


class TanhTruth(Truth):
    """Of ``tanh(W z + U x + b)``, in numpy."""

    def __init__(self, params: dict[str, Any], x: Any):
        self.w, self.u, self.b, self.x = (
            np.asarray(a, np.float64) for a in (params["w"], params["u"], params["b"], x)
        )
        z = np.zeros((self.x.shape[0], self.w.shape[0]))
        for _ in range(100):  # into Newton's basin
            z = self.map(z)
        super().__init__(z)

    def map(self, z):
        return np.tanh(z @ self.w.T + self.x @ self.u.T + self.b)

    def jacobian(self, z):
        return (1 - self.map(z) ** 2)[:, :, None] * self.w

    def pull(self, v):
        v = v * (1 - self.z**2)
        return {"w": v.T @ self.z, "u": v.T @ self.x, "b": v.sum(0)}


class MapTruth(Truth):
    """Of any map over independent samples: f itself, differentiated by jax in float64.

    The Jacobians of all samples are formed column by column, so that a sample's state may have some
    thousand entries.
    """

    def __init__(self, f: Callable, params: Any, z0: Any, x: Any, *, power: int = 2):
        with jax.enable_x64(True):
            self.params, self.x, z0 = jax.tree.map(
                lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, x, z0)
            )
            leaves, treedef = jax.tree.flatten(z0)

            def unflat(z):
                parts, at = [], 0
                for leaf in leaves:
                    size = leaf[0].size
                    parts.append(z[:, at : at + size].reshape(leaf.shape))
                    at += size
                return jax.tree.unflatten(treedef, parts)

            def apply(params, z, x):
                return _flat(f(params, unflat(z), x))

            def columns(params, z, x):
                def column(tangent):
                    given = jnp.broadcast_to(tangent, z.shape)
                    return jax.jvp(lambda z: apply(params, z, x), (z,), (given,))[1]

                size = z.shape[1]
                columns = jax.lax.map(column, jnp.eye(size), batch_size=min(size, 64))
                return jnp.moveaxis(columns, 0, -1)

            self._apply, self._columns = jax.jit(apply), jax.jit(columns)
            self._pull = jax.jit(
                lambda params, z, x, v: jax.vjp(lambda p: apply(p, z, x), params)[1](v)[0]
            )
        z = flat(z0)
        for _ in range(300):  # into Newton's basin
            z = self.map(z)
        super().__init__(z, power=power)

    def map(self, z):
        with jax.enable_x64(True):
            return np.asarray(self._apply(self.params, z, self.x))

    def jacobian(self, z):
        with jax.enable_x64(True):
            return np.asarray(self._columns(self.params, z, self.x))

    def pull(self, v):
        with jax.enable_x64(True):
            return jax.device_get(self._pull(self.params, self.z, self.x, v))


def flat(z: Any) -> np.ndarray:
    """A state as float64[batch, d]."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(z)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _flat(z: Any) -> jax.Array:
    """The same while tracing."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(z)], axis=1)
