"""Publishes into the folder that a fleet's Envoys watch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ..envoy.live import write_delay, write_ready, write_table
from ..fleet import Fleet
from ..table import RoutingTable


class EnvoyPublisher:
    """Replaces files that Envoy takes in milliseconds; see `envoy.live`.

    Args:
        root: folder of the fleet's files, as `render --target envoy` writes it.
        fleet: as they were written for.
    """

    def __init__(self, root: Path, fleet: Fleet) -> None:
        self._root, self._fleet = root, fleet

    def publish(self, table: RoutingTable) -> Collection[str]:
        return [f"endpoints of {region}" for region in write_table(self._root, self._fleet, table)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        longest_s = self._fleet.retry.delay.max_s
        return [
            f"delay of {region}"
            for region, share in shares.items()
            if write_delay(self._root, region, share, longest_s)
        ]

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        write_ready(self._root, self._fleet, region, servers)
        return ()
