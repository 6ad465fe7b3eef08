"""What a command says while it works: lines on stderr, since stdout is for results."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .errors import StillmotionError


def tell(line: str) -> None:
    """Write one line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def write_result(text: str) -> None:
    """Write a command's result to stdout.

    Raises:
        StillmotionError: stdout cannot be written, for example since the disk is full.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that are no text; they leave as they came.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python writes what is left of the buffer once more when it ends, and would print a traceback.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise StillmotionError(f"stdout: cannot be written ({error.strerror or error})") from error


def counter(unit: str) -> Callable[[int, int], None]:
    """A function of (done, total) that counts in place on a terminal, and elsewhere says each tenth."""
    began = time.monotonic()

    def count(done: int, total: int) -> None:
        line = f"{unit} {done}/{total}  {time.monotonic() - began:.0f} s"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{line}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            tell(line)

    return count
