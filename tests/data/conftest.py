"""The stand-ins of experiments/prepare_local.py, written once a session, when first asked for."""

import functools

import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """``prepared(name)``: the data_dir that holds the set."""
    from experiments.prepare_local import prepare

    data_dir = tmp_path_factory.mktemp("image_sets")

    @functools.cache
    def make(name):
        prepare(name, data_dir)
        return data_dir

    return make
