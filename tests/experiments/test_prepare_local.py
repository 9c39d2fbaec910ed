"""The command that writes stand-ins for the image sets."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import prepare_local
from jdeq.data import CIFAR10, MNIST, open_images


def test_command_writes_once(tmp_path, capsys):
    command = ["mnist", "--data-dir", str(tmp_path)]
    assert prepare_local.main(command) == 0
    folder = tmp_path / "mnist" / "3.0.1"
    assert capsys.readouterr().out == f"wrote {folder}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]  # nothing beside it
    assert "digits" in json.loads((folder / "dataset_info.json").read_text())["description"]

    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert prepare_local.main(command) == 2  # a real set is never overwritten
    assert f"error: {folder} is there already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_it_is_the_same_every_time(tmp_path):
    for part in ("one", "two"):
        prepare_local.prepare("mnist", tmp_path / part)
    one, two = (open_images(MNIST, "test", data_dir=tmp_path / part) for part in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.label == b.label


def test_unknown_name(capsys):
    with pytest.raises(SystemExit):
        prepare_local.main(["cifar11", "--data-dir", "x"])
    assert "cifar10" in capsys.readouterr().err


def test_preparing_asks_no_network(tmp_path):
    """From an empty home directory; any connection or look-up of a host ends the process."""
    script = """
import os, socket, sys
def refused(*args, **kwargs):
    os.write(2, b"network was asked for")
    os._exit(9)
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
from experiments import prepare_local
code = prepare_local.main(["cifar10", "--data-dir", sys.argv[1]])
assert "tensorflow" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "sets")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    train = open_images(CIFAR10, "train", data_dir=tmp_path / "sets")
    colours = {tuple(train[i].image[0, 0]) for i in range(20)}
    assert len(colours) > 15  # the channels are not copies of one another
