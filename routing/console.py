"""What a command says while it works: lines on stderr, since stdout is for results.

With `STILLMOTION_LOG=json` they are lines of JSON, as those of the GPU servers are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn


def interruptible(main: Callable[[], int]) -> int:
    """Run a program's main function; an interrupt at any moment is one line and exit status 130.

    Args:
        main: imports what it needs, so that an interrupt meanwhile is one too.
    """
    try:
        # What ends in good order on Ctrl-C does so too when a service manager or `timeout` ends it.
        signal.signal(signal.SIGTERM, _interrupt)
        return main()
    except KeyboardInterrupt:  # before the command had begun, or a second one while it was ending
        sys.stderr.write("interrupted\n")
        return 130
    finally:
        # Nothing is left that could be interrupted, and Python's own clearing up would print a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def tell(line: str) -> None:
    """Write one line."""
    if os.environ.get("STILLMOTION_LOG") == "json":
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "logger": "routing", "message": line})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def png(text: str) -> Path:
    """An argument that names a picture; other formats are refused before any work is done."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text} does not end in .png, and plots are PNG pictures")
    return path


def put(lines: Iterable[str]) -> int:
    """Write a result to stdout, and give the exit status that follows: 1 where it cannot be written."""
    try:
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read, as `head` does, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        tell(f"error: the result cannot be written ({error.strerror})")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
