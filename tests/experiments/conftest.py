"""Runs on one device here, as on a laptop, though the suite has eight; test_launch.py has more."""

import functools

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import config
from jdeq.training import make_mesh


@pytest.fixture(scope="session", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        alone = functools.partial(make_mesh, devices=jax.devices()[:1])
        patch.setattr(config, "make_mesh", alone)
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of the processes that tests start
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Quick compilation, whose programs are kept: for subprocesses, and for what comes after."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it may have been opened without a directory before
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
