"""What may change while a fleet's proxies run. Each function replaces files at once; Envoy takes them in milliseconds.

A file that Envoy cannot use changes nothing: it keeps what it had, and counts `update_rejected`.
"""

from __future__ import annotations

from pathlib import Path

from ..fleet import Fleet, RetryPolicy
from ..table import RoutingTable
from . import delay
from .edge import ROUTES_KIND, edge_endpoints, edge_routes
from .folders import (
    ENDPOINTS,
    ROUTES,
    RUNTIME,
    edge_folder,
    write_endpoints,
    write_resources,
    write_runtime,
)


def write_table(root: Path, fleet: Fleet, table: RoutingTable) -> list[str]:
    """Publish a table: the endpoints of each edge.

    Args:
        root: folder of the fleet's files.
        fleet: as they were written for.
        table: of this fleet.

    Returns:
        Regions whose row is another than before.

    Raises:
        RoutingError: a file cannot be written. Edges before it have the new row already.
    """
    places = fleet.places()
    changed = []
    for region in fleet.names:
        path = edge_folder(root, region) / ENDPOINTS
        if write_endpoints(path, edge_endpoints(fleet, region, places, table)):
            changed.append(region)
    return changed


def write_delay(root: Path, region: str, share: float, max_s: float) -> bool:
    """Set the marginal delay of an edge; whether it is another now.

    Args:
        root: folder of the fleet's files.
        region: of the edge.
        share: of the jobs, 0 to 1.
        max_s: a delayed job waits uniform(0, max_s).
    """
    return write_runtime(edge_folder(root, region) / RUNTIME, delay.runtime_values(share, max_s))


def write_retries(root: Path, fleet: Fleet, region: str, policy: RetryPolicy) -> bool:
    """Set the retry policy of an edge; whether it is another now."""
    path = edge_folder(root, region) / ROUTES
    return write_resources(path, ROUTES_KIND, [edge_routes(fleet, region, policy)])
