"""The command that measures what an earlier equilibrium saves."""

import pytest

from experiments import warm_start


def test_an_earlier_equilibrium_saves_evaluations(capsys):
    argv = ["synthetic", "--after", "100", "--gaps", "1", "30", "--rtols", "1e-2", "1e-4"]
    assert warm_start.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:2] for row in rows] == [
        ["1", "0.01"], ["1", "0.0001"], ["30", "0.01"], ["30", "0.0001"],
    ]  # fmt: skip
    for _, _, cold, warm, converged in rows:
        assert 1 <= float(warm) < float(cold)
        assert converged == "100%, 100%"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("digits_resnet", "digits_resnet has no equilibrium"),
        ("digits_mdeq --after -1", "after must be >= 0; got -1"),
        ("digits_mdeq --gaps 3 3", "gaps must be >= 1 and rise; got (3, 3)"),
        ("digits_mdeq --gaps 0", "gaps must be >= 1 and rise; got (0,)"),
        ("digits_mdeq --rtols", "rtols must have at least one tolerance; got none"),
        ("digits_mdeq --rtols 2", "rtols must lie in (0, 1); got 2"),
    ],
)
def test_wrong_arguments(argv, message, capsys):
    assert warm_start.main(argv.split()) == 2
    assert message in capsys.readouterr().err
