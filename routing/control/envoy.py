"""Publishing to a fleet's Envoys, through the files that they watch (`routing.envoy.live`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ..envoy.folders import RUNTIME, edge_folder, ingress_folder
from ..envoy.live import write_delay, write_ready, write_table
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
        self._servers = {name: frozenset(place.servers) for name, place in fleet.places().items()}

    def publish(self, table: RoutingTable) -> Collection[str]:
        return [f"{region}/edge/endpoints.yaml" for region in write_table(self._root, self._fleet, table)]

    def set_delays(self, shares: Mapping[str, float]) -> Collection[str]:
        max_s = self._fleet.retry.delay.max_s
        changed = [region for region, share in shares.items() if write_delay(self._root, region, share, max_s)]
        return [str(edge_folder(Path(), region) / RUNTIME) for region in changed]

    def set_ready(self, region: str, servers: Collection[str]) -> Collection[str]:
        # Metrics may name machines otherwise than the data plane does. Then nothing is known of its servers, and
        # to count them as down would be to close the region.
        # Those that come and go are somebody else's to write.
        if not self._servers[region] or not self._servers[region].issuperset(servers):
            return ()
        before = self._limits(region)
        write_ready(self._root, self._fleet, region, servers)
        after = self._limits(region)
        return [path for path, text in after.items() if before.get(path) != text]

    def _limits(self, region: str) -> dict[str, bytes]:
        numbers = range(1, len(self._fleet.places()[region].dispatchers) + 1)
        paths = [ingress_folder(Path(), region, number) / RUNTIME for number in numbers]
        return {str(path): (self._root / path).read_bytes() for path in paths if (self._root / path).is_file()}
