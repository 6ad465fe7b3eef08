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


_NEWS = "… "


def news(line: str) -> None:
    """Say from a notebook how far it is: the line stays in its output, and the runner passes it on at once."""
    sys.stdout.write(f"{_NEWS}{line}\n")
    sys.stdout.flush()


def news_in(text: str) -> list[str]:
    """Return the lines of a notebook's output that `news` wrote."""
    return [line.removeprefix(_NEWS) for line in text.splitlines() if line.startswith(_NEWS)]


def about(seconds: float) -> str:
    """Return a duration as a person says it: "about 40 s", "about 3 min"."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} s"
    return f"about {round(seconds / 60)} min"


class Counter:
    """Says how far work is, and how long the rest takes.

    Args:
        unit: of what is counted, such as "step".
        say: where the lines go.
        times: how many lines there are; on a terminal `tell`'s are one that changes in place.
    """

    def __init__(self, unit: str, say: Callable[[str], None] = tell, times: int = 10) -> None:
        self.unit, self.say, self.times = unit, say, times
        self._began, self._said = time.monotonic(), 0
        self._first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Count.

        Args:
            note: a figure that belongs to the line, such as a loss.
        """
        parts, now = [f"{self.unit} {done} of {total}", *([note] if note else [])], time.monotonic()
        if self._first is None and done > 1:
            # The first batch, or all that was done before work was broken off: its pace is not known yet.
            self._first, self._began = done, now
        elif done < total:
            self._first = self._first or 0
            parts.append(f"{about((now - self._began) * (total - done) / (done - self._first))} left")
        line = ", ".join(parts)
        if self.say is tell and sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{line}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif done * self.times // total > self._said:  # batches may step over one
            self._said = done * self.times // total
            self.say(line)
