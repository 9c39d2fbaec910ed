"""Checkpoints: whole or not there, verified when read, the newest good one wins."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.training import CheckpointError, Checkpoints, TrainState

KEY = jax.random.key(7)


def state(step):
    return TrainState(
        step=jnp.int32(step),
        params={"w": jax.random.normal(jax.random.key(step), (64, 65))},
        model_state={},
        opt_state=(jnp.zeros(3), jnp.float32(step)),
        key=KEY,
        skipped=jnp.int32(0),
        skipped_in_row=jnp.int32(0),
    )


ABSTRACT = jax.eval_shape(lambda: state(0))


@pytest.fixture
def saved(tmp_path):
    """Steps 1 to 3, of which two stay."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(state(step), {"train_seconds": float(step)})
    checkpoints.close()
    return tmp_path / "checkpoints"


def damage_truncate(path):
    for file in (path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_flip(path):
    """One bit of the stored numbers: the format itself does not notice."""
    largest = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)


def damage_meta(path):
    (path / "meta" / "metadata").write_text('{"extra": {')


def damage_empty(path):
    shutil.rmtree(path)
    path.mkdir()


DAMAGES = [damage_truncate, damage_flip, damage_meta, damage_empty]


def test_round_trip(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.steps() == [2, 3]
    restored = checkpoints.restore(ABSTRACT)
    assert restored.extra == {"train_seconds": 3.0} and restored.damaged == ()
    assert int(restored.state.step) == 3
    np.testing.assert_array_equal(restored.state.params["w"], state(3).params["w"])
    assert (jax.random.key_data(restored.state.key) == jax.random.key_data(KEY)).all()


def test_nothing_there(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(ABSTRACT) is None
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoints(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_reported_and_the_one_before_used(saved, damage):
    damage(saved / "3")
    said = []
    checkpoints = Checkpoints(saved, report=said.append)
    restored = checkpoints.restore(ABSTRACT)
    assert int(restored.state.step) == 2 and restored.damaged == (3,)
    assert "3 is damaged" in said[0] and "step 2" in said[1]
    assert (saved.parent / "damaged" / "3").is_dir()  # set aside, not deleted
    assert checkpoints.save(state(3), {}) == 3  # the run can write that step again
    assert int(checkpoints.restore(ABSTRACT).state.step) == 3


def test_reader_changes_nothing(saved):
    damage_meta(saved / "3")
    restored = Checkpoints(saved, read_only=True, report=lambda line: None).restore(ABSTRACT)
    assert int(restored.state.step) == 2
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]


def test_none_readable_is_one_error(saved):
    damage_empty(saved / "2")
    damage_truncate(saved / "3")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* \(steps 3, 2\)"):
        Checkpoints(saved, report=lambda line: None).restore(ABSTRACT)
    assert sorted(p.name for p in saved.iterdir()) == ["2", "3"]


def test_half_written_is_not_a_checkpoint(saved):
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(saved).steps() == [2, 3]


def test_save_twice_writes_once(saved):
    checkpoints = Checkpoints(saved)
    before = (saved / "3" / "meta" / "metadata").stat().st_mtime_ns
    assert checkpoints.save(state(3), {}) == 3
    assert (saved / "3" / "meta" / "metadata").stat().st_mtime_ns == before


def test_keep_must_leave_one_before(tmp_path):
    with pytest.raises(ValueError, match="keep must be >= 2; got 1"):
        Checkpoints(tmp_path, keep=1)
