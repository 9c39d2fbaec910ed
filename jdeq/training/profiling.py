"""A trace of a few training steps, for TensorBoard or Perfetto."""

import pathlib

import jax


class Profile:
    """jax's profiler over the steps ``start`` to ``start + steps - 1`` of a run.

    Taken once, when the run comes to ``start``: a run that is resumed after it has none. A step
    that compiles is mostly that, so ``start`` had better lie after the first step of each kind.

    Args:
      directory: where the trace goes, under plugins/profile.
      start: the first step, >= 0.
      steps: how many, >= 1; a trace of many is large.
    Raises:
      ValueError: when built, if ``start`` or ``steps`` lies outside its range.
    """

    def __init__(self, directory: pathlib.Path, *, start: int, steps: int = 3):
        for name, value, least in (("start", start, 0), ("steps", steps, 1)):
            if value < least:
                raise ValueError(f"jdeq.training.Profile: {name} must be >= {least}; got {value}")
        self._directory, self._start, self._end = directory, start, start + steps
        self._tracing = False

    def before(self, position: int) -> None:
        """To be called before the step at ``position``."""
        if position == self._start:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif position == self._end:
            self.close()

    def close(self) -> None:
        """End the trace, where one is running."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
