"""Ctrl-C and SIGTERM as a request that the loop reads between two steps."""

import signal
from types import FrameType


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets a flag; the second SIGINT interrupts.

    Handlers are those of the process, so enter it in the main thread.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str | None:
        """The signal that came, "SIGINT" or "SIGTERM"; None before."""
        return self._signal.name if self._signal else None

    def __bool__(self) -> bool:
        return self._signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number)
