"""Eight CPU devices for the whole suite, set before anything imports jax; quick compilation."""

import functools
import importlib.metadata
import os
import pathlib
import sys

import pytest

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could ask for 8 CPU devices")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

_MANY_MAPS = 20_000  # Linux allows a process 65,530 memory maps; each compiled program takes some


def _quick_compilation():
    """Environment in which a program compiles in 40% of the time, and runs slower."""
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    # Later versions do not know the first option.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        options = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        quick["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options}"
    return quick


def pytest_configure(config):
    # Most of the time of these is XLA's. The other slow tests train, and need fast programs.
    if config.option.markexpr.startswith(("not slow", "slow and compiles")):
        os.environ.update(_quick_compilation())


@pytest.fixture
def quick_compilation():
    """For processes that tests start, which compile and do little else."""
    return _quick_compilation()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """``prepared(name)``: the data_dir that holds the stand-in of an image set, written once."""
    from experiments.prepare_local import prepare

    data_dir = tmp_path_factory.mktemp("image_sets")

    @functools.cache
    def make(name):
        prepare(name, data_dir)
        return data_dir

    return make


@pytest.fixture
def optimized():
    """For tests of what XLA makes of a program."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def _few_memory_maps():
    """Drop compiled programs before there are too many: XLA crashes when a map is refused."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
        import jax

        jax.clear_caches()
