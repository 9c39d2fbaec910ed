"""Checkpoints: whole or not there, verified when read, the newest good one wins."""

import errno
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdeq.training import CheckpointError, Checkpoints, Layout, TrainState, make_mesh

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


def test_what_was_set_aside_before_stays(saved):
    for _ in range(2):
        damage_meta(saved / "3")
        checkpoints = Checkpoints(saved, report=lambda line: None)
        checkpoints.restore(ABSTRACT)
        checkpoints.save(state(3), {})
        checkpoints.close()
    assert {path.name for path in (saved.parent / "damaged").iterdir()} == {"3", "3_"}


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_just_now_is_not_called_damaged(saved, monkeypatch, error):
    checkpoints = Checkpoints(saved, report=lambda line: None)

    def restore(*args, **kwargs):
        raise RuntimeError("orbax failed") from error

    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    with pytest.raises(CheckpointError, match=f"nothing was changed: {type(error).__name__}"):
        checkpoints.restore(ABSTRACT)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_begun_once_one_is_whole_even_if_it_is_lost(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpoints = Checkpoints(directory)
    (directory / "1.orbax-checkpoint-tmp").mkdir()  # killed while it was written
    assert not checkpoints.begun and checkpoints.restore(ABSTRACT) is None
    checkpoints.save(state(1), {})
    checkpoints.close()
    assert checkpoints.steps() == [1]
    checkpoints = Checkpoints(directory)
    checkpoints.save(state(2), {})
    checkpoints.finish()
    checkpoints.close()
    shutil.rmtree(directory)
    assert Checkpoints(directory).begun and Checkpoints(directory).restore(ABSTRACT) is None


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


def test_the_best_stays_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    qualities = [None, 0.5, 0.9, 0.7, None, 0.8, 0.1]
    for step, quality in enumerate(qualities):
        checkpoints.save(state(step), {}, quality=quality)
    checkpoints.close()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.steps() == [2, 5, 6] and reader.best() == 2
    assert int(reader.restore(ABSTRACT, best=True).state.step) == 2
    assert int(reader.restore(ABSTRACT).state.step) == 6
    damage_flip(tmp_path / "2")
    with pytest.raises(CheckpointError, match="2 is damaged"):
        reader.restore(ABSTRACT, best=True)


def test_no_best_without_a_quality(saved):
    with pytest.raises(CheckpointError, match="has a quality"):
        Checkpoints(saved, read_only=True).restore(ABSTRACT, best=True)


def test_a_full_disk_is_one_error_and_the_last_good_one_stays(saved):
    """The kernel refuses files of more than 8 KiB; a state has 16."""
    checkpoints = Checkpoints(saved)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(CheckpointError, match="could not save step 4 .*last good .* step 3"):
            checkpoints.save(state(4), {})
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = []
    restored = Checkpoints(saved, report=said.append).restore(ABSTRACT)
    assert int(restored.state.step) == 3 and not said


def test_a_state_comes_back_on_another_mesh(tmp_path):
    wide, narrow = (Layout(mesh=make_mesh(**axes)) for axes in (dict(fsdp=8), dict(data=2, fsdp=4)))
    placed = jax.device_put(state(1), wide.state(state(1)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(placed, {})
    restored = checkpoints.restore(narrow.placed(ABSTRACT)).state
    np.testing.assert_array_equal(restored.params["w"], state(1).params["w"])
    assert restored.params["w"].sharding == narrow.state(ABSTRACT).params["w"]
    assert restored.params["w"].addressable_shards[0].data.shape == (16, 65)
