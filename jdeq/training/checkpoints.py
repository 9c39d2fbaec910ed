"""Full-state checkpoints: written atomically, verified when read, the newest good one wins."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from jdeq.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message says where and why."""


class Restored(NamedTuple):
    """A checkpoint read back."""

    state: TrainState
    extra: dict[str, Any]  # the JSON that was saved beside it
    damaged: tuple[int, ...]  # newer checkpoints that could not be read, newest first


class Checkpoints:
    """The checkpoints of one run: directory/<step>, the last ``keep`` of them.

    A checkpoint appears whole or not at all (orbax writes beside it and renames). It carries a
    checksum of every array, since the storage format does not notice a changed byte of data.

    Args:
      directory: made if it is missing, unless ``read_only``.
      keep: how many of the newest stay, >= 2, so that there is one before a damaged one.
      read_only: for readers: changes nothing on disk.
      report: called with a sentence when something is wrong but the run can go on.
    Raises:
      ValueError: when built, if ``keep`` < 2.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        report: Callable[[str], None] = print,
    ):
        if keep < 2:
            raise ValueError(f"jdeq.training.Checkpoints: keep must be >= 2; got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._report = report
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=False,
        )
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"no checkpoints: {self.directory} does not exist")
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, readable or not."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, extra: dict[str, Any]) -> int:
        """Write ``state`` and the JSON ``extra`` under ``state.step``; returns that step.

        A step that is on disk already is left as it is.

        Raises:
          CheckpointError: if it could not be written; older checkpoints are untouched.
        """
        step = int(state.step)
        if step in self.steps():
            return step
        meta = {"extra": extra, "step": step, "checksums": _checksums(state)}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            kept = [s for s in self.steps() if s != step]
            raise CheckpointError(
                f"could not save step {step} in {self.directory}: {_first_line(error)}"
                + (f"; the last good checkpoint is step {kept[-1]}" if kept else "")
            ) from error
        return step

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest readable checkpoint, or None if there is none at all.

        Damaged ones that are newer are reported and, unless ``read_only``, moved to
        ``directory/../damaged/`` so that the run can write those steps again.

        Args:
          abstract: shapes and dtypes (and shardings) of the state: ``jax.eval_shape`` of its init.
        Raises:
          CheckpointError: if there are checkpoints and none can be read.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                state, extra = self._read(step, abstract)
            except Exception as error:  # a damaged file fails in any of many ways
                self._report(
                    f"checkpoint {self.directory / str(step)} is damaged: {_first_line(error)}"
                )
                damaged.append(step)
                continue
            if damaged:
                self._report(f"going on from the checkpoint before: step {step}")
                if not self._read_only:
                    self._set_aside(damaged)
            return Restored(state, extra, tuple(damaged))
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be read (steps "
                f"{', '.join(map(str, damaged))}); nothing was changed"
            )
        return None

    def close(self) -> None:
        """Release orbax's threads."""
        self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
            ),
        )
        state, meta = restored["state"], restored["meta"]
        found = _checksums(state)
        changed = [name for name, sum_ in found.items() if sum_ != meta["checksums"].get(name)]
        if changed:
            raise CheckpointError(f"the checksum of {changed[0]} does not fit its data")
        return state, meta["extra"]

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            target = self.directory.parent / "damaged" / str(step)
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(exist_ok=True)
            shutil.move(self.directory / str(step), target)
        self._manager.reload()


def _checksums(state: TrainState) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get(_leaf_checksums([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(p): int(s) for (p, _), s in zip(leaves, sums, strict=True)}


@jax.jit
def _leaf_checksums(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    """Sum of each leaf's bytes-as-integers, modulo 2^32: the same under any sharding."""

    def checksum(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype == bool:
            return leaf.astype(jnp.uint32).sum(dtype=jnp.uint32)
        width = min(leaf.dtype.itemsize, 4)
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
        return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [checksum(jnp.asarray(leaf)) for leaf in leaves]


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:300]
