"""Who is told of a new table and of delays: files in a folder, and the files that a fleet's edges watch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ..envoy.files import RUNTIME, edge_folder, write_delay, write_table
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
