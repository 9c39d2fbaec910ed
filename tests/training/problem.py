"""A model of 700 parameters and its run, small enough to train in a test."""

import dataclasses
import signal

import flax.linen as nn
import jax
import numpy as np

import jdeq
from jdeq.data import Dataset, ShuffledBatches
from jdeq.linen import DEQ
from jdeq.training import (
    Loop,
    Phase,
    adamw,
    cross_entropy_loss,
    make_init,
    make_train_step,
)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, z, x):
        return nn.tanh(nn.Dense(8, kernel_init=nn.initializers.normal(0.1))(z) + x)


class Model(nn.Module):
    """tanh cell between two linear layers, with a BatchNorm for its running statistics."""

    @nn.compact
    def __call__(self, images, *, train=False, probe=None):
        x = nn.Dense(8)(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        deq = DEQ(cell=Cell(parent=None), solver=jdeq.Anderson(depth=3), max_steps=10, name="deq")
        solution = deq(x, probe=probe)
        return nn.Dense(3)(solution.z), solution


def toy_data(size=40):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, size).astype(np.int32)
    images = rng.normal(size=(size, 4, 4, 1)).astype(np.float32) + labels[:, None, None, None]
    return Dataset(images, labels)


OPTIMIZER = adamw(lambda step: 1e-2, weight_decay=1e-3, clip_norm=1.0)
MODEL = Model()
STEP = make_train_step(cross_entropy_loss(MODEL), OPTIMIZER)
INIT = make_init(MODEL, OPTIMIZER)


def initial_state(seed=0):
    return jax.jit(INIT)(jax.random.key(seed), toy_data().inputs[:8])


@dataclasses.dataclass
class Recorder:
    """A sink that keeps what it is told; may send SIGTERM after a step."""

    stop_after: int | None = None
    rows: list = dataclasses.field(default_factory=list)

    def write(self, step, kind, metrics):
        self.rows.append((step, kind, metrics))
        if step == self.stop_after:
            signal.raise_signal(signal.SIGTERM)

    def close(self):
        pass


def make_loop(total=20, *, batches=None, max_skipped=3, weight=0.5, **options):
    batches = batches or ShuffledBatches(data=toy_data(), batch_size=8, max_shift=1)
    defaults = dict(
        phases=[Phase(until=total, steps=[STEP])],
        batch_at=batches,
        items="examples",
        items_per_step=8,
        schedule=jdeq.JacobianSchedule(weight=weight, probability=0.5),
        hooks=[],
        log_every=1,
        save_every=5,
        max_skipped=max_skipped,
        learning_rate=lambda step: 1e-2,
    )
    return Loop(**(defaults | options))
