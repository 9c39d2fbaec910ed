"""Runs on one device here, as on a laptop, though the suite has eight; test_launch.py has more."""

import functools

import jax
import pytest

from experiments import config
from jdeq.training import make_mesh


@pytest.fixture(scope="session", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        alone = functools.partial(make_mesh, devices=jax.devices()[:1])
        patch.setattr(config, "make_mesh", alone)
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of the processes that tests start
        yield
