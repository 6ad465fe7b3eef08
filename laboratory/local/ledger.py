"""The ledger: a line for each computation that begins or ends, by request id, so that it can be proved that none is
done twice.

It is a file of its own for each stand-in, written line by line: what a killed stand-in had begun stays known.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

SUFFIX = ".ledger"
Event = Literal["began", "ended", "cancelled"]


class Ledger:
    """Writes the lines of one stand-in.

    Args:
        path: of the file, which is appended to; None: nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = -1 if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def note(self, event: Event, request_id: str) -> None:
        """Add a line."""
        if self._file >= 0:
            os.write(self._file, f"{event} {request_id}\n".encode())


def read(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Event, request id and stand-in, of each line of each ledger in a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for line in path.read_text(encoding="utf-8").splitlines():
            event, _, request_id = line.partition(" ")
            yield event, request_id, path.name.removesuffix(SUFFIX)


def computations(folder: Path) -> Counter[str]:
    """How often each request was begun to be computed."""
    return Counter(request_id for event, request_id, _ in read(folder) if event == "began")
