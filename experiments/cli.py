"""What the commands share: errors as one message, quiet libraries."""

import logging
import sys
from collections.abc import Callable

from experiments.config import ConfigError
from jdeq.training import CheckpointError, NonFiniteError


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
