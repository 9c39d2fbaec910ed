"""Ctrl-C and SIGTERM as a request that the loop reads between two steps."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets a flag; the second SIGINT interrupts.

    Handlers are those of the process, so enter it in the main thread. With several processes JAX
    itself takes SIGTERM, tells the others, and has all of them stop after the same step.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str | None:
        """The signal that came, "SIGINT" or "SIGTERM"; None before."""
        return self._signal.name if self._signal else None

    def reached(self, position: int) -> bool:
        """Whether to stop after step ``position``: asked once a step, by every process."""
        if jax.process_count() == 1:
            return self._signal is not None
        reached = multihost_utils.reached_preemption_sync_point(position)
        if reached and self._signal is None:
            self._signal = signal.SIGTERM
        return reached

    def __enter__(self) -> "StopRequest":
        taken = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
        for number in taken:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
