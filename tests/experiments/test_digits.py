"""The main job, at its full length."""

import json

import pytest

from experiments import train


@pytest.mark.slow
def test_digits_mdeq_reaches_its_accuracy(tmp_path):
    """The main job as the README gives it: >= 98.5% of the test images after 6 evaluations."""
    assert train.main(["digits_mdeq", "--workdir", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["test"]
    (six,) = [row for row in rows if row.get("budget") == 6]
    assert six["accuracy"] >= 0.985
