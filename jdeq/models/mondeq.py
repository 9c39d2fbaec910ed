"""Monotone operator DEQ image classifiers: fully connected, convolutional, multi-tier.

    z* = relu(W z* + U images + b),  W strongly monotone: z* exists and is unique

Source: Winston and Kolter (2020), Monotone operator equilibrium networks, arXiv 2006.08591.
Deviations: products with W by FFT in both splittings of the convolutional model; the multi-tier
model is solved by forward-backward only, its resolvent being no convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jdeq import tree
from jdeq.layers.monotone import (
    ForwardBackward,
    PeacemanRachford,
    Product,
    circular_product,
    dense_product,
    monotone_matrix,
    resolvent,
    tiered_product,
    transfer,
)
from jdeq.models.equilibrium_model import EquilibriumModel, equilibrium_layer
from jdeq.models.image_parts import check_rank
from jdeq.types import Solution, Status, require_integer

_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonDEQConfig:
    """What a monotone operator DEQ is made of.

    Args:
      channels: width of each tier; a tier has half the sides of the one before.
      num_classes: of the logits, >= 1.
      convolutional: False is one fully connected layer on the flattened image.
      pool: sides of the average pooling before the linear classifier, >= 1.
      margin: m > 0, of strong monotonicity.
    Raises:
      ValueError: when built, for a value outside these ranges.
    """

    channels: tuple[int, ...]
    num_classes: int
    convolutional: bool = True
    pool: int = 1
    margin: float = 1.0

    def __post_init__(self):
        name = "jdeq.models.MonDEQConfig"
        require_integer(name, "num_classes", self.num_classes, 1)
        require_integer(name, "pool", self.pool, 1)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"{name}: channels must be >= 1, one a tier; got {self.channels}")
        if not self.convolutional and (len(self.channels) > 1 or self.pool > 1):
            raise ValueError(
                f"{name}: convolutional must be True for several tiers or a pool; got False with "
                f"channels {self.channels}, pool {self.pool}"
            )
        if not self.margin > 0:
            raise ValueError(f"{name}: margin must be > 0; got {self.margin}")


MONDEQ_MNIST_DENSE = MonDEQConfig(channels=(87,), num_classes=10, convolutional=False)
"""MNIST, fully connected: 84K parameters, 98.1% in the paper."""
MONDEQ_CIFAR_SINGLE = MonDEQConfig(channels=(81,), num_classes=10, pool=4)
"""CIFAR-10, one tier: 172K parameters, 74.0% in the paper."""
MONDEQ_CIFAR_MULTI = MonDEQConfig(channels=(16, 32, 60), num_classes=10)
"""CIFAR-10, three tiers: 170K parameters, 72.0% in the paper."""
MONDEQ_CIFAR_SINGLE_LARGE = MonDEQConfig(channels=(200,), num_classes=10, pool=4)
"""CIFAR-10, one tier: 854K parameters, 82.0% in the paper, with augmentation."""
MONDEQ_CIFAR_MULTI_LARGE = MonDEQConfig(channels=(60, 114, 120), num_classes=10)
"""CIFAR-10, three tiers: 1.01M parameters, 89.0% in the paper, with augmentation; the split of the
widths over the tiers is chosen here (64, 128, 128 of the released notebook are 1.19M)."""


def _product(config: MonDEQConfig) -> Product:
    """How W is multiplied with."""
    if not config.convolutional:
        return dense_product
    return tiered_product if len(config.channels) > 1 else circular_product


class _Splitting(nn.Module):
    """One evaluation of a splitting: a map without parameters; W comes in with the injection."""

    splitting: Any
    product: Any

    def __call__(self, z, x):
        return self.splitting.update(self.product, z, x)

    def initial_state(self, x):
        return jax.tree.map(jnp.zeros_like, x["bias"])


class MonDEQ(EquilibriumModel):
    """``logits = linear(pool(z*))``.

    Args:
      config: the architecture.
      splitting: the map whose fixed point is z*; None: PeacemanRachford, or ForwardBackward with a
        step of 1/4 for several tiers.
      solver, gradient, rtol, atol, max_steps, test_every: those of ``jdeq.fixed_point``.
      penalty: that of `jdeq.linen.DEQ`; None: `jdeq.jacobian_penalty`.
    """

    config: MonDEQConfig
    splitting: ForwardBackward | PeacemanRachford | None = None

    def setup(self):
        channels, several = self.config.channels, len(self.config.channels) > 1
        default = ForwardBackward(step=0.25) if several else PeacemanRachford()
        splitting = self.splitting or default
        if several and isinstance(splitting, PeacemanRachford):
            raise ValueError(
                "jdeq.models.MonDEQ: splitting must be ForwardBackward for several tiers; got "
                f"{splitting}"
            )
        self.injection = (
            nn.Conv(channels[0], (3, 3), padding=1)
            if self.config.convolutional
            else nn.Dense(channels[0])
        )
        shapes = [(3, 3, c, c) for c in channels]
        if not self.config.convolutional:
            shapes = [(channels[0], channels[0])]
        down = [(3, 3, a, b) for a, b in zip(channels, channels[1:], strict=False)]
        self.kernels = {
            part: {
                "same": tuple(self._kernel(f"{part}{i}", s) for i, s in enumerate(shapes)),
                "down": tuple(self._kernel(f"{part}{i}_down", s) for i, s in enumerate(down)),
            }
            for part in ("a", "b")
        }
        self.deq = equilibrium_layer(
            self, _Splitting(splitting, _product(self.config), parent=None)
        )
        self.classify = nn.Dense(self.config.num_classes)

    def __call__(
        self, images: Float[Array, "batch height width colours"], *, train: bool = False, probe=None
    ) -> tuple[Float[Array, "batch classes"], Solution]:
        """Logits and the solve.

        Args:
          images: float[batch, height, width, colours]; the sides divisible by ``config.pool``, and
            by 2 for every tier after the first.
          train: changes nothing: the recipe has no dropout and no batch statistics.
          probe: see ``jdeq.backward_probe``.
        Returns:
          logits float32[batch, num_classes]; the Solution with z* (a tuple for several tiers); its
          residual is that of the splitting's own iterate.
        Raises:
          ValueError: for images of another rank or with sides that do not fit.
        Cost: sol.stats.nfe evaluations of the splitting.
        """
        del train
        x = self.splitting_input(images)
        solution = self.deq(x, probe=probe)
        z = solution.z
        if isinstance(self.deq.cell.splitting, PeacemanRachford):
            z = jax.tree.map(nn.relu, z)
        features = z[-1] if isinstance(z, tuple) else z
        pool = self.config.pool
        if pool > 1:
            features = nn.avg_pool(features, (pool, pool), (pool, pool))
        logits = self.classify(features.reshape(features.shape[0], -1))
        return logits, solution._replace(z=z)

    def splitting_input(self, images: Array) -> dict[str, Any]:
        """What the splitting reads besides its state: ``bias``, and ``weights`` for its product."""
        self._check_images(jnp.shape(images))
        weights, bias = self.operator(images)
        splitting = self.deq.cell.splitting
        if isinstance(splitting, PeacemanRachford):
            weights = resolvent(weights, splitting.step)
        return {"weights": weights, "bias": bias}

    def operator(self, images: Array) -> tuple[PyTree, PyTree]:
        """W, as the product with it takes it, and ``U images + b``."""
        margin = self.config.margin
        flat = images if self.config.convolutional else images.reshape(images.shape[0], -1)
        bias = self.injection(flat)
        a, b = (jax.tree.map(lambda k: k.astype(bias.dtype), self.kernels[part]) for part in "ab")
        if not self.config.convolutional:
            return monotone_matrix(a["same"][0], b["same"][0], margin), bias
        if len(self.config.channels) == 1:
            sides = images.shape[1], images.shape[2]
            hat_a, hat_b = (transfer(part["same"][0], sides) for part in (a, b))
            return monotone_matrix(hat_a, hat_b, margin), bias
        batch, height, width, _ = bias.shape
        lower = (
            jnp.zeros((batch, height >> i, width >> i, c), bias.dtype)
            for i, c in enumerate(self.config.channels[1:], 1)
        )
        return {"a": a, "b": b, "margin": margin}, (bias, *lower)

    def _kernel(self, name: str, shape: tuple[int, ...]) -> Array:
        """A matrix; or a kernel of Frobenius norm given by a learned scale, so that a step size
        found at the start serves later.
        """
        kernel = self.param(name, _uniform, shape, jnp.float32)
        if not self.config.convolutional:
            return kernel
        scale = self.param(f"{name}_scale", nn.initializers.ones, (), jnp.float32)
        return scale * kernel / jnp.linalg.norm(kernel.ravel())

    def _check_images(self, shape: tuple[int, ...]) -> None:
        check_rank("jdeq.models.MonDEQ", shape)
        if not self.config.convolutional:
            return
        divisor = self.config.pool * 2 ** (len(self.config.channels) - 1)
        for axis, side in zip(("height", "width"), shape[1:3], strict=True):
            if side % divisor:
                raise ValueError(
                    f"jdeq.models.MonDEQ: the {axis} of images must be divisible by {divisor} "
                    f"(pooling and tiers); got {side}"
                )


def largest_step(model: MonDEQ, variables: dict[str, Any], images: Array) -> float:
    """``2 m / L^2``, below which forward-backward converges by plain iteration.

    L, the spectral norm of I - W, by 100 power steps on ``(I - W)^T (I - W)``: an estimate from
    below, so the bound is one from above.
    """
    weights, bias = model.apply(variables, images[:1], method=MonDEQ.operator)
    product = _product(model.config)

    def apply(z):
        return tree.subtract(z, product(weights, z))

    def body(_, z):
        (back,) = jax.linear_transpose(apply, z)(apply(z))
        return tree.scale(1.0 / tree.norm(back, 1), back)

    z = jax.lax.fori_loop(0, 100, body, tree.normal_like(jax.random.key(0), bias))
    norm = tree.norm(apply(tree.scale(1.0 / tree.norm(z, 1), z)), 1)
    return float(2.0 * model.config.margin / norm[0] ** 2)


def tune_step(
    model: MonDEQ,
    variables: dict[str, Any],
    images: Array,
    *,
    steps: Iterable[float] = (1.0, 0.5, 0.25, 0.125, 0.0625),
) -> float:
    """The step size with which ``model`` solves ``images`` in the fewest evaluations.

    Raises:
      ValueError: if no step solves all of them within ``model.max_steps``.
    Cost: one evaluation of the model, and a compilation, for each of ``steps``.
    """
    kind = type(model.bind(variables).deq.cell.splitting)
    tried = {}
    for step in steps:
        stats = jax.jit(model.clone(splitting=kind(step=step)).apply)(variables, images)[1].stats
        if bool(jnp.all(stats.status == Status.CONVERGED)):
            tried[step] = float(stats.nfe.mean())
    if not tried:
        raise ValueError(
            "jdeq.models.tune_step: steps must hold one that converges within max_steps="
            f"{model.max_steps}; got {tuple(steps)}"
        )
    return min(tried, key=tried.__getitem__)
