"""What a command says while it works: lines on stderr, since stdout is for results."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def tell(line: str) -> None:
    """Write one line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


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


def without_nan(value: Any) -> Any:
    """The same with None for each NaN and infinity in it: JSON has no such numbers, and most readers refuse them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
