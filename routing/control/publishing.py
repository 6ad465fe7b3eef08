"""Who is told of a new table, of delays and of GPU servers that can take jobs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ..files import write_atomically
from ..table import RoutingTable

TABLE = "table.json"
DELAYS = "delays.json"


class Publisher(Protocol):
    """Takes what the loop decides to where it is used.

    All three may be called again with what was said before: they see to it that it is so, and say what they had
    to change. That mends what another hand has spoilt.
    """

    def publish(self, table: RoutingTable) -> Collection[str]:
        """Put a table into use.

        Returns:
            Names of what was written, for people; empty when all was as it should be.

        Raises:
            RoutingError: it could not be done, or not for all; it is to be tried again.
        """

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        """Set the share of jobs, 0 to 1, that wait before their first attempt, by source region."""

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        """Say which GPU servers of a region are not down, by address."""


class FolderPublisher:
    """Writes `table.json` and `delays.json`, whole and at once, for whatever watches or renders them.

    Args:
        folder: where; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def publish(self, table: RoutingTable) -> Collection[str]:
        return self._write(TABLE, table.to_json())

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        return self._write(DELAYS, json.dumps({"share": dict(shares)}, indent=2) + "\n")

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        return ()

    def _write(self, name: str, text: str) -> Collection[str]:
        path = self._folder / name
        if path.is_file() and path.read_bytes() == text.encode():
            return ()
        write_atomically(path, text)
        return (name,)


class Publishers:
    """Several, one after the other.

    Args:
        publishers: told in this order. The one that keeps the last good table is best the first: what it has is
            what a restart goes on from.
    """

    def __init__(self, publishers: Iterable[Publisher]) -> None:
        self._publishers = tuple(publishers)

    def publish(self, table: RoutingTable) -> Collection[str]:
        return [name for one in self._publishers for name in one.publish(table)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        return [name for one in self._publishers for name in one.set_delays(shares)]

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        return [name for one in self._publishers for name in one.set_ready(region, servers)]
