"""`python -m loadtests`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from .cli import main


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # What ends in good order on Ctrl-C does so too when a service manager or `timeout` ends it.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
