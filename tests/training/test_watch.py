"""Warnings of rises, traces of some steps."""

import pytest

from jdeq.training import Profile, Watch
from tests.training.problem import make_loop
from tests.training.test_loop import run


def watched(rows, **options):
    """What is said of records of (nfe_forward, residual_mean), one a window."""
    said = []
    watch = Watch(**{"budget": 10, "window": 1, "report": said.append, **options})
    for step, (nfe, residual) in enumerate(rows, 1):
        watch.write(step, "test", {})
        watch.write(step, "train", {"nfe_forward": nfe, "residual_mean": residual})
    watch.close()
    return said


def test_a_rise_is_told_once_and_again_after_it_was_undone():
    residuals = [1e-2, 1e-3, 9e-3, 2e-2, 5e-2, 9e-3, 2e-2, 3e-3, 1e-3, 2e-2]
    (first, second) = watched([(4.0, residual) for residual in residuals])
    for text in ("step 4", "mean residual", "from 0.001 to 0.02", "Raise regularizer.gamma"):
        assert text in first
    assert "step 10" in second


def test_evaluations_that_rise_by_half_or_to_the_budget():
    assert watched([(4.0, 0.1), (5.9, 0.1), (3.5, 0.1), (5.2, 0.1)]) == []
    (half,) = watched([(4.0, 0.1), (6.0, 0.1), (8.0, 0.1)])
    assert "step 2" in half and "evaluations" in half and "from 4 to 6" in half
    (spent,) = watched([(8.0, 0.1), (9.9, 0.1), (10.0, 0.1)])
    assert "step 3" in spent and "all of the budget (10)" in spent
    assert watched([(10.0, 0.1), (9.5, 0.1), (10.0, 0.1)]) == []  # always near it: no rise
    assert watched([(8.0, 0.1), (11.0, 0.1)], budget=None) == []


def test_windows_and_what_comes_before_the_start():
    rows = [(1.0, 1e-9)] * 2 + [(4.0, 1e-3), (4.0, 3e-3)] + [(4.0, 1e-3), (4.0, 1e-1)]
    (only,) = watched(rows, start=2, window=2)
    assert "step 6" in only and "from 0.002 to 0.0505" in only
    with pytest.raises(ValueError, match="jdeq.training.Watch: window must be >= 1; got 0"):
        Watch(budget=None, window=0)


def test_a_trace_of_the_steps_asked_for(tmp_path):
    """Written when they are over, or with the run."""
    profile = Profile(tmp_path / "profile", start=2, steps=2)
    seen = []

    def hook(state):
        seen.append(any(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")))
        return "seen", {}

    loop = make_loop(5, profile=profile, hooks=[(1, hook)])
    run(loop, tmp_path / "checkpoints")
    assert seen == [False] * 4 + [True]
    ends = Profile(tmp_path / "short", start=1, steps=9)
    run(make_loop(2, profile=ends), tmp_path / "again")
    assert any(tmp_path.glob("short/plugins/profile/*/*.xplane.pb"))
    run(make_loop(4, profile=Profile(tmp_path / "late", start=1)), tmp_path / "again")
    assert not (tmp_path / "late").exists()  # resumed after it
    for options, message in (
        ({"start": -1}, "start must be >= 0; got -1"),
        ({"start": 0, "steps": 0}, "steps must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=f"jdeq.training.Profile: {message}"):
            Profile(tmp_path, **options)
