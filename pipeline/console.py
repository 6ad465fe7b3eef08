"""What a command says while it works: lines on stderr, since stdout is for results."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


_NEWS = "… "


def news(line: str) -> None:
    """Say from a notebook how far it is: the line stays in its output, and the runner passes it on at once."""
    sys.stdout.write(f"{_NEWS}{line}\n")
    sys.stdout.flush()


def news_in(text: str) -> list[str]:
    """The lines of a notebook's output that `news` wrote."""
    return [line.removeprefix(_NEWS) for line in text.splitlines() if line.startswith(_NEWS)]


def news_of(unit: str) -> Callable[[int, int], None]:
    """A function of (done, total) for notebooks: at each fifth it says how far the work is, and how long the rest."""
    began, said = time.monotonic(), 0

    def count(done: int, total: int) -> None:
        nonlocal said
        if done * 5 // total > said:  # batches may step over a fifth
            said = done * 5 // total
            left = (time.monotonic() - began) * (total - done) / done
            news(f"{unit} {done} of {total}" + (f", {about(left)} left" if done < total else ""))

    return count


def about(seconds: float) -> str:
    """A duration as a person says it: "about 40 s", "about 3 min"."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} s"
    return f"about {round(seconds / 60)} min"


def counter(unit: str) -> Callable[[int, int], None]:
    """A function of (done, total) that counts in place on a terminal, and elsewhere says each tenth."""
    began, said = time.monotonic(), 0

    def count(done: int, total: int) -> None:
        nonlocal said
        line = f"{unit} {done}/{total}  {time.monotonic() - began:.0f} s"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{line}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done * 10 // total > said:
            said = done * 10 // total
            tell(line)

    return count


def without_nan(value: Any) -> Any:
    """The same with None for each NaN and infinity in it: JSON has no such numbers, and most readers refuse them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
