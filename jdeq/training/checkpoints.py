"""Full-state checkpoints: written atomically, verified when read, the newest good one wins."""

import contextlib
import errno
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jdeq.training.state import TrainState

_WANTING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
"""Errors of a read that are not about what is read."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message says where and why."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      state: what was saved.
      extra: the JSON that was saved beside it.
      damaged: steps of newer checkpoints that could not be read, newest first.
    """

    state: TrainState
    extra: dict[str, Any]
    damaged: tuple[int, ...]


class Checkpoints:
    """The checkpoints of one run: directory/<step>, the last ``keep`` of them and the best one.

    A checkpoint appears whole or not at all (orbax writes beside it and renames). It carries a
    checksum of every array, since the storage format does not notice a changed byte of data.
    Written in the background, by all processes together; restored on any mesh and any number of
    processes.

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
        preserved = AnyPreservationPolicy(
            [
                LatestN(keep),
                # Ascending: the last ones stay.
                BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else preserved,
            best_fn=_quality,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=True,
        )
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"no checkpoints: {self.directory} does not exist")
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._writing: int | None = None
        # Beside the directory, so that it outlives it.
        self._begun = self.directory.with_name(f"{self.directory.name}.begun")

    @property
    def begun(self) -> bool:
        """Whether one was ever written to the end here, be it lost."""
        return self._begun.exists()

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, readable or not."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step that was saved with the largest quality; None if none was saved with one."""
        rated = {step: self._manager.metrics(step) for step in self.steps()}
        known = {step: _quality(metrics) for step, metrics in rated.items() if metrics}
        known = {step: quality for step, quality in known.items() if quality > -math.inf}
        return max(known, key=lambda step: known[step], default=None)

    def save(
        self, state: TrainState, extra: dict[str, Any], *, quality: float | None = None
    ) -> int:
        """Begin to write ``state`` and the JSON ``extra`` under ``state.step``; returns that step.

        ``state`` is copied before this returns, so that it may be donated. A step that is on disk
        already is left as it is.

        Args:
          quality: the larger the better; of two checkpoints with one the better is the best.
        Raises:
          CheckpointError: if it, or the one begun before, could not be written; older checkpoints
            are untouched.
        """
        step = int(state.step)
        self.finish()
        if step in self.steps():
            return step
        rated = quality is not None and not math.isnan(quality)
        meta = {"extra": extra, "step": step, "checksums": _checksums(state)}
        self._writing = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                metrics={"quality": quality if rated else -math.inf},
            )
        return step

    def finish(self) -> None:
        """Wait until what `save` began is on disk.

        Raises:
          CheckpointError: if it could not be written; older checkpoints are untouched.
        """
        with self._explained():
            self._manager.wait_until_finished()
            if self._writing is not None and jax.process_index() == 0:
                self._begun.touch()
        self._writing = None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, or of one of orbax's threads
            kept = [step for step in self.steps() if step != self._writing]
            raise CheckpointError(
                f"could not save step {self._writing} in {self.directory}: {_first_line(error)}"
                + (f"; the last good checkpoint is step {kept[-1]}" if kept else "")
            ) from error

    def restore(self, abstract: TrainState, *, best: bool = False) -> Restored | None:
        """The newest readable checkpoint, or None if there is none at all.

        Damaged ones that are newer are reported and, unless ``read_only``, moved to
        ``directory/../damaged/`` so that the run can write those steps again.

        Args:
          abstract: shapes and dtypes (and shardings) of the state: ``jax.eval_shape`` of its init.
          best: the `best` one in its place.
        Raises:
          CheckpointError: if there are checkpoints and none can be read; if one cannot be read for
            want of memory, open files or permission; with ``best``, if none was saved with a
            quality or that one cannot be read.
        """
        if best:
            step = self.best()
            if step is None:
                raise CheckpointError(f"no checkpoint in {self.directory} has a quality")
            try:
                return Restored(*self._read(step, abstract), ())
            except Exception as error:  # a damaged file fails in any of many ways
                _refuse_blame(error)
                raise CheckpointError(
                    f"checkpoint {self.directory / str(step)} is damaged: {_first_line(error)}"
                ) from error
        damaged = []
        for step in reversed(self.steps()):
            try:
                state, extra = self._read(step, abstract)
            except Exception as error:  # a damaged file fails in any of many ways
                _refuse_blame(error)
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
        """Release orbax's threads, after what they write."""
        self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        problem = None
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # a damaged file fails in any of many ways
            problem = error
        # A part of it may be damaged that only one process reads: all have to know.
        if np.any(multihost_utils.process_allgather(np.array(problem is not None))):
            raise problem or CheckpointError("another process cannot read its part of it")
        state, meta = restored["state"], restored["meta"]
        found = _checksums(state)
        changed = [name for name, sum_ in found.items() if sum_ != meta["checksums"].get(name)]
        if changed:
            raise CheckpointError(f"the checksum of {changed[0]} does not fit its data")
        return state, meta["extra"]

    def _set_aside(self, steps: list[int]) -> None:
        # By one process; the others wait, or they would read what is being moved.
        for step in steps if jax.process_index() == 0 else ():
            aside = self.directory.parent / "damaged"
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            while target.exists():  # of an earlier time
                target = target.with_name(f"{target.name}_")
            shutil.move(self.directory / str(step), target)
        multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()


def _refuse_blame(error: BaseException | None) -> None:
    """Raise where a file could not be read for want of something, rather than for what it holds."""
    while error is not None:
        wanting = isinstance(error, OSError) and error.errno in _WANTING
        if wanting or isinstance(error, MemoryError):
            raise CheckpointError(
                "a checkpoint cannot be read, though it may be whole; nothing was changed: "
                f"{_first_line(error)}"
            ) from error
        error = error.__cause__ or error.__context__


def _quality(metrics: dict[str, float]) -> float:
    return metrics["quality"]


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
