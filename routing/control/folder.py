"""The folder that a loop publishes into: one loop at a time, and the last good table, which a start goes on from."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import InputError, RoutingError
from ..fleet import Fleet
from ..table import RoutingTable

LOCK = "control.lock"
_MOST_KEPT = 1000
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Saved:
    """What was found.

    Attributes:
        table: to go on from.
        text: where it is from, for people.
        valid: whether a table was found that could be used as it is, or none was there.
    """

    table: RoutingTable
    text: str
    valid: bool = True


def last_good(path: Path, fleet: Fleet, at_home: RoutingTable) -> Saved:
    """Read the table that was published last.

    A file that cannot be used is kept beside, under another name, for people to look at. One of a fleet that has
    other regions now is made to fit: its rows are traffic that works, and to take all of it home would not be.

    Args:
        path: of the table.
        fleet: that it should be of.
        at_home: the table to begin with where there is none, and for regions that are new.

    Raises:
        RoutingError: the unusable file cannot be moved away.
    """
    if not path.exists():
        return Saved(at_home, "no table was published here before; all traffic starts at home")
    try:
        table = RoutingTable.read(path)
    except InputError as error:
        kept = _set_aside(path)
        text = f"{error}; the file is kept as {kept.name}, all traffic starts at home"
        return Saved(at_home, text, valid=False)
    try:
        table.check(fleet)
    except InputError as error:
        new = RoutingTable(
            epoch=table.epoch,
            version=table.version + 1,
            generated_at=at_home.generated_at,
            shares=fitted(table, fleet, at_home),
        )
        return Saved(new, f"table {table.version} is of another fleet ({error}); it was made to fit", valid=False)
    return Saved(table, f"goes on from table {table.version}")


def fitted(table: RoutingTable, fleet: Fleet, at_home: RoutingTable) -> dict[str, dict[str, float]]:
    """Rows for a fleet that has other regions or another law: what went to a region that is no more, or that is
    forbidden now, stays at home, and a new region's row is that of `at_home`.
    """
    rows = {}
    for source in fleet.names:
        if source not in table.shares:
            rows[source] = dict(at_home.shares[source])
            continue
        row = {to: share for to, share in table.shares[source].items() if to in fleet.regions and fleet.may(source, to)}
        row[source] = row.get(source, 0.0) + max(0.0, 1.0 - sum(row.values()))
        total = sum(row.values())
        rows[source] = {to: share / total for to, share in row.items()}
    return rows


def _set_aside(path: Path) -> Path:
    for number in range(1, _MOST_KEPT):
        kept = path.with_name(f"{path.name}.unusable-{number}")
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                raise RoutingError(f"{path}: cannot be used, and not be moved away ({error.strerror})") from error
            return kept
    raise RoutingError(f"{path}: cannot be used; neither can {_MOST_KEPT - 1} before it. Remove them")


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
