"""What the commands share: their arguments, errors as one message, quiet libraries."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from experiments.config import ConfigError
from jdeq.training import CheckpointError, NonFiniteError

T = TypeVar("T")


def command(
    name: str,
    arguments: type[T],
    run: Callable[[T], int],
    argv: Sequence[str] | None,
    description: str | None,
) -> int:
    """``run`` with the arguments of ``python -m experiments.NAME``, guarded; its exit code."""
    prog = f"python -m experiments.{name}"
    return guarded(lambda: run(tyro.cli(arguments, args=argv, prog=prog, description=description)))


def timed(say: Callable[[str], None]) -> Callable[[str], None]:
    """``say`` with the seconds since now before what is said: for work of minutes, step by step."""
    start = time.perf_counter()
    return lambda what: say(f"[{time.perf_counter() - start:4.0f} s] {what}")


def guarded(main: Callable[[], int]) -> int:
    """``main()``; an error that its user can act on is printed in place of a traceback.

    Returns:
      the exit code: 2 for a bad configuration or workdir, 1 for a run that had to be given up,
      130 when interrupted by a second Ctrl-C.
    """
    # orbax logs every file it misses; the reason is in the error or the report already.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return main()
    except (ConfigError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: training was stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was saved before is untouched", file=sys.stderr)
        return 130
