"""Who is told of a new table and of delays: files in a folder, and the files that a fleet's edges watch."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ..envoy.files import RUNTIME, edge_folder, write_delay, write_table
from ..errors import InputError, RoutingError
from ..files import write_atomically
from ..fleet import Fleet
from ..table import RoutingTable

TABLE = "table.json"
DELAYS = "delays.json"


class Publisher(Protocol):
    """Takes what the loop decides to where it is used.

    Both may be called again with what was said before: they see to it that it is so, and return what they had to
    change. That mends what another hand has spoilt.
    """

    def publish(self, table: RoutingTable, drained: Collection[str]) -> Collection[str]:
        """Put a table into use.

        Args:
            table: the new one.
            drained: regions that retries must not go to either.

        Returns:
            Names of what was written, for people; empty when all was as it should be.

        Raises:
            RoutingError: it could not be done, or not for all; it is to be tried again.
        """

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        """Set the share of jobs, 0 to 1, that wait before their first attempt, by source region."""


class FolderPublisher:
    """Writes `table.json` and `delays.json`, whole and at once, for whatever watches or renders them.

    Args:
        folder: where; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, table: RoutingTable, drained: Collection[str]) -> Collection[str]:
        return self._write(TABLE, table.to_json())

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        return self._write(DELAYS, json.dumps({"share": dict(shares)}, indent=2) + "\n")

    def _write(self, name: str, text: str) -> Collection[str]:
        path = self._folder / name
        if path.is_file() and path.read_bytes() == text.encode():
            return ()
        write_atomically(path, text)
        return (name,)


class EnvoyPublisher:
    """Tells the edges of a fleet through the files that they watch (`routing.envoy.files`).

    Args:
        root: folder of the fleet's files, as `render --target envoy` wrote them.
        fleet: as they were written for.
    """

    def __init__(self, root: Path, fleet: Fleet) -> None:
        self._root, self._fleet = root, fleet

    def publish(self, table: RoutingTable, drained: Collection[str]) -> Collection[str]:
        fleet = self._fleet.avoiding(drained)
        return [f"{region}/edge/endpoints.yaml" for region in write_table(self._root, fleet, table)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        max_s = self._fleet.retry.delay.max_s
        changed = [region for region, share in shares.items() if write_delay(self._root, region, share, max_s)]
        return [str(edge_folder(Path(), region) / RUNTIME) for region in changed]


class Publishers:
    """Several, one after the other.

    Args:
        publishers: told in this order. The one that keeps the last good table is best the first: what it has is
            what a restart goes on from.
    """

    def __init__(self, publishers: Iterable[Publisher]) -> None:
        self._publishers = tuple(publishers)

    def publish(self, table: RoutingTable, drained: Collection[str]) -> Collection[str]:
        return [name for one in self._publishers for name in one.publish(table, drained)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        return [name for one in self._publishers for name in one.set_delays(shares)]


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
