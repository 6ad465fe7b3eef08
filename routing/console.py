"""What a command says while it works: lines on stderr, since stdout is for results."""

from __future__ import annotations

import sys


def tell(line: str) -> None:
    """Write one line."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
