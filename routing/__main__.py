"""`python -m routing`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run() -> int:
    try:
        # What ends in good order on Ctrl-C does so too when a service manager or `timeout` ends it.
        signal.signal(signal.SIGTERM, _interrupt)
        from .cli import main

        return main()
    except KeyboardInterrupt:  # before the command had begun, or a second one while it was ending
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        # Nothing is left that could be interrupted, and Python's own clearing up would print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(_run())
