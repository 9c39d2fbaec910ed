"""The table of runs side by side, from made-up reports."""

import dataclasses
import json

from experiments import compare
from experiments.config import GradientConfig
from experiments.config_files import load_run


def write(directory, config, accuracies, seed):
    directory.mkdir()
    config = dataclasses.replace(config, seed=seed)
    (directory / "config.json").write_text(config.to_json())
    test = [{"stop": k, "accuracy": v, "nfe_forward": 4.0} for k, v in accuracies.items()]
    report = {
        "seed": seed,
        "data": "d",
        "test": test,
        "spectral_radius_mean": 0.5,
        "train_seconds": 10.0,
    }
    (directory / "report.json").write_text(json.dumps(report))
    return directory


def test_seeds_share_a_row_and_configurations_are_told_apart(tmp_path, capsys):
    pair = load_run("digits_revdeq")
    unrolled = dataclasses.replace(pair, gradient=GradientConfig(kind="unrolled"))
    directories = (
        write(tmp_path / "a", pair, {"after 2": 0.98, "rtol 0.1": 0.5}, 0),
        write(tmp_path / "b", pair, {"after 2": 0.96, "rtol 0.1": 0.7}, 1),
        write(tmp_path / "c", unrolled, {"after 1": 0.25, "after 2": 0.75}, 0),
    )
    assert compare.run(compare.Arguments(workdirs=directories)) == 0
    heads, _, one, two = capsys.readouterr().out.strip().splitlines()[-4:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (heads, one, two)]
    first, second = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert (first["gradient"], first["seeds"]) == ("reversible", "0, 1")
    assert (first["after 2"], first["rtol 0.1"], first["after 1"]) == (
        "97.00 +- 1.41",
        "60.00 +- 14.14",
        "",
    )
    assert (second["gradient"], second["after 1"]) == ("unrolled", "25.00")
