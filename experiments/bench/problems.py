"""The maps that are timed.

Problems A and B are ``f(params, z, x) = tanh(W z + U x + b)``, 64 samples of width 256 in float32.
A: random W scaled to spectral radius 0.9 (about 0.6 at z*). B: symmetric W with eigenvalues within
0.95 and a small input (about 0.91 at z*), where plain iteration is slow; the stiff ones go on from
there. Beside them a transformer cell, the cell of an MDEQ, and a batch of which few samples are
slow.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.truth import MapTruth, TanhTruth, Truth
from jdeq.models.mdeq import MDEQCell
from jdeq.models.mdeq_config import MDEQBody

RTOL = 1e-5
REACHED = 1.02 * RTOL  # the stop tests are in float32, the check in float64
"""Residual that every entry is brought to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A map with its inputs.

    Args:
      size: describes it in the report.
      truth: what its solutions and gradients are checked by.
      power: of the loss; 4 where the map normalises, which fixes the mean square.
      max_steps: enough for every way to solve it, plain iteration included.
      rounds: at most so many, where a solve takes long.
    """

    name: str
    f: Callable[[Any, Any, Any], Any]
    params: Any
    z0: Any
    x: Any
    size: str
    truth: Truth | None = None
    power: int = 2
    max_steps: int = 200
    rounds: int = 30

    @property
    def args(self) -> tuple[Any, Any, Any]:
        """What f is solved for: ``(params, z0, x)``."""
        return self.params, self.z0, self.x

    @property
    def known(self) -> Truth:
        """Its truth.

        Raises:
          ValueError: if it has none.
        """
        if self.truth is None:
            raise ValueError(f"experiments.bench: {self.name} has no truth")
        return self.truth


def tanh_map(params, z, x):
    """tanh(W z + U x + b) for a batch of rows."""
    return jnp.tanh(z @ params["w"].T + x @ params["u"].T + params["b"])


def two_layer_map(params, z, x):
    """tanh(tanh(z W1) W2 + x) over tokens, float32[batch, tokens, width]."""
    return jnp.tanh(jnp.tanh(z @ params["w1"]) @ params["w2"] + x)


def loss_of(z, power: int = 2):
    """The loss of every value_and_grad case: the mean of a power of the state, over its leaves."""
    leaves = jax.tree.leaves(z)
    return sum(jnp.sum(leaf**power) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def _weights(
    w: np.ndarray, scale: float, batch: int, rng
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Parameters of a `tanh_map` and an input, float32."""
    width = w.shape[0]
    params = {
        "w": w,
        "u": rng.standard_normal((width, width)) / np.sqrt(width),
        "b": 0.1 * scale * rng.standard_normal(width),
    }
    x = jnp.asarray(scale * rng.standard_normal((batch, width)), jnp.float32)
    return {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}, x


def _tanh_problem(name: str, w: np.ndarray, scale: float, batch: int, rng, **limits) -> Problem:
    params, x = _weights(w, scale, batch, rng)
    return Problem(
        name=name,
        f=tanh_map,
        params=params,
        z0=jnp.zeros_like(x),
        x=x,
        size=f"batch {batch}, width {w.shape[0]}",
        truth=TanhTruth(params, x),
        **limits,
    )


def _symmetric(width: int, largest: float, rng) -> np.ndarray:
    """Eigenvalues spread over [-largest, largest]."""
    q, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return (q * np.linspace(-largest, largest, width)) @ q.T


def problem_a(batch: int = 64, width: int = 256) -> Problem:
    """Random W of spectral radius 0.9."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((width, width))
    w *= 0.9 / np.abs(np.linalg.eigvals(w)).max()
    return _tanh_problem("A", w, 1.0, batch, rng)


def problem_b(batch: int = 64, width: int = 256) -> Problem:
    """Symmetric W with eigenvalues spread over [-0.95, 0.95], small input."""
    rng = np.random.default_rng(1)
    return _tanh_problem("B", _symmetric(width, 0.95, rng), 0.1, batch, rng)


STIFF = {"stiff 0.99": (0.995, 0.013, 2000), "stiff 0.999": (0.9995, 0.001, 10000)}
"""Spectral radius at z*, about: the largest eigenvalue of W, the size of x, and steps enough."""


def stiff(name: str, batch: int = 16, width: int = 256) -> Problem:
    """B with eigenvalues nearer to 1 and a smaller input; ``name`` is one of `STIFF`."""
    largest, scale, max_steps = STIFF[name]
    rng = np.random.default_rng(1)
    w = _symmetric(width, largest, rng)
    return _tanh_problem(name, w, scale, batch, rng, max_steps=max_steps, rounds=8)


def gained_map(params, z, x):
    """tanh(g W z + U x + b) for a batch of rows; x is (input, float[batch, 1] gain g)."""
    inputs, gain = x
    return jnp.tanh(gain * (z @ params["w"].T) + inputs @ params["u"].T + params["b"])


SLOW = 16
"""One sample of so many is a slow one of `mixed`."""


def mixed(batch: int = 256, width: int = 256) -> Problem:
    """Symmetric W; of 16 samples 15 converge in n steps and one, of a larger gain, in 10 n."""
    rng = np.random.default_rng(4)
    params, inputs = _weights(_symmetric(width, 1.0, rng), 0.1, batch, rng)
    gain = np.where(np.arange(batch) % SLOW == 0, 0.977, 0.5)
    x = (inputs, jnp.asarray(gain[:, None], jnp.float32))
    z0 = jnp.zeros((batch, width), jnp.float32)
    return Problem(
        name="mixed",
        f=gained_map,
        params=params,
        z0=z0,
        x=x,
        size=f"batch {batch}, of which {batch // SLOW} slow, width {width}",
        truth=MapTruth(gained_map, params, z0, x),
        max_steps=1000,
        rounds=15,
    )


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


def causal_attention(q, k, v):
    """softmax(q k^T / sqrt(d)) v over earlier positions, all of it in the dtype of q."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    earlier = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(earlier, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def transformer_cell(
    batch: int,
    tokens: int,
    width: int,
    heads: int,
    *,
    attend: Callable | None = None,
) -> tuple:
    """A causal pre-LN transformer block as ``(f, params, z0, x)``; hidden width 4 x width. Its
    attention: jax's own unless another one is given.
    """
    attend = attend or partial(jax.nn.dot_product_attention, is_causal=True)
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
        mixed = attend(q.reshape(split), k.reshape(split), v.reshape(split))
        z = z + mixed.reshape(z.shape) @ params["out"]
        return norm(z + jax.nn.gelu(norm(z) @ params["up"]) @ params["down"])

    x = jnp.asarray(rng.standard_normal((batch, tokens, width)), jnp.float32)
    return f, params, jnp.zeros_like(x), x


def transformer(batch: int = 8, tokens: int = 16, width: int = 32, heads: int = 4) -> Problem:
    """`transformer_cell`, its residual stream a mixture of state and input; a sample is a text."""
    cell, params, z0, x = transformer_cell(batch, tokens, width, heads, attend=causal_attention)

    def f(params, z, x):
        return cell(params, 0.8 * z + 0.2 * x, x)

    return Problem(
        name="transformer",
        f=f,
        params=params,
        z0=z0,
        x=x,
        size=f"batch {batch} x {tokens} tokens, width {width}, {heads} heads",
        truth=MapTruth(f, params, z0, x, power=4),
        power=4,
        max_steps=1000,
        rounds=10,
    )


def mdeq(batch: int = 4, side: int = 8, channels: tuple[int, int] = (8, 16)) -> Problem:
    """The cell of an MDEQ with two scales; the state is a pair of feature maps.

    As it starts the map expands. The input and the gains of the two norms through which it comes in
    are raised and that of the way up is lowered, which makes it contract as training does.
    """
    cell = MDEQCell(MDEQBody(channels=channels, num_classes=10, expansion=2, groups=4))
    x = 5 * jax.random.normal(jax.random.key(0), (batch, side, side, channels[0]))
    z0 = cell.initial_state(x)
    params: Any = cell.init(jax.random.key(1), z0, x)
    scales = {"fuse0to1_norm0": 4.0, "fuse1to0_norm": 0.5}
    for name, scale in scales.items():
        params["params"][name]["scale"] *= scale
    params["params"]["block0"]["norm2"]["scale"] *= 4.0
    half, (fine, coarse) = side // 2, channels
    return Problem(
        name="mdeq",
        f=cell.apply,
        params=params,
        z0=z0,
        x=x,
        size=f"batch {batch}, {side} x {side} x {fine} and {half} x {half} x {coarse}",
        truth=MapTruth(cell.apply, params, z0, x, power=4),
        power=4,
        rounds=15,
    )
