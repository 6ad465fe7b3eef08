"""Publishing to a fleet's Envoys, through the files that they watch (`routing.envoy.live`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ..envoy.folders import RUNTIME, edge_folder
from ..envoy.live import write_delay, write_table
from ..fleet import Fleet
from ..table import RoutingTable


class EnvoyPublisher:
    """Tells the Envoys.

    Args:
        root: folder of the fleet's files, as `render --target envoy` wrote them.
        fleet: as they were written for.
    """

    def __init__(self, root: Path, fleet: Fleet) -> None:
        self._root, self._fleet = root, fleet

    def publish(self, table: RoutingTable) -> Collection[str]:
        return [f"{region}/edge/endpoints.yaml" for region in write_table(self._root, self._fleet, table)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        max_s = self._fleet.retry.delay.max_s
        changed = [region for region, share in shares.items() if write_delay(self._root, region, share, max_s)]
        return [str(edge_folder(Path(), region) / RUNTIME) for region in changed]

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        return ()  # a dispatcher knows its servers itself
