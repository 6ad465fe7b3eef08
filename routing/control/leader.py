"""One loop at a time publishes into a folder: a lock on a file, which the system releases when its holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import RoutingError

LOCK = "control.lock"
_LOOK_EVERY_S = 0.5


class Leader:
    """The right to publish into a folder, for as long as the block lasts.

    Args:
        folder: where tables are published.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file = -1

    def take(self) -> bool:
        """Take it, if nobody has it; whether it is ours now.

        Raises:
            RoutingError: the file cannot be opened.
        """
        try:
            # The file is never removed: a lock on a file that has lost its name excludes nobody.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RoutingError(f"{self._path}: cannot be opened ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            return False
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())
        return True

    def holder(self) -> str:
        """Who has it, for people."""
        try:
            pid = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            pid = ""
        return f"process {pid}" if pid else "another process"

    async def wait(self, stop: asyncio.Event) -> bool:
        """Take it as soon as it is free; whether it is ours before the stop."""
        while not self.take():
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await stop.wait()
            except TimeoutError:
                continue
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
