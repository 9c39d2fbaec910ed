"""The package's promises: what an import costs and brings, and what the metadata says."""

import configparser
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

PROBE = """
import json, sys, time
import flax.linen, flax.nnx, jax
before = set(sys.modules)
start = time.perf_counter()
import jdeq
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({name.split(".")[0] for name in set(sys.modules) - before})]))
"""


def test_import_is_quick_and_light():
    def imported():
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return json.loads(done.stdout)

    seconds, packages = min(imported() for _ in range(2))
    assert seconds < 2.0  # the promise; about a tenth of it on an idle machine
    heavy = {"optax", "orbax", "jaxopt", "sklearn", "matplotlib", "tyro", "rich", "tensorboardX"}
    assert not heavy & set(packages)


def test_public_names_exist():
    import jdeq

    for name in jdeq.__all__:
        assert hasattr(jdeq, name)
    assert len(set(jdeq.__all__)) == len(jdeq.__all__)


def test_metadata():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options"]["python_requires"] == ">=3.11"
    core = {line.split(">=")[0] for line in config["options"]["install_requires"].split()}
    assert core == {"jax", "flax", "optax", "orbax-checkpoint", "jaxtyping"}
    extras = set(config["options.extras_require"])
    assert extras == {
        "experiments", "jaxopt", "data", "prepare", "text", "notebooks", "docs", "bench", "test",
    }  # fmt: skip
