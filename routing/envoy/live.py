"""What may change while a fleet's proxies run. Each function replaces files at once; Envoy takes them in milliseconds.

A file that Envoy cannot use changes nothing: it keeps what it had, and counts `update_rejected`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import InputError
from ..fleet import Fleet, RetryPolicy
from ..table import RoutingTable
from . import delay
from .edge import ROUTES_KIND, edge_endpoints, edge_routes
from .folders import (
    ENDPOINTS,
    ROUTES,
    RUNTIME,
    edge_folder,
    ingress_folder,
    write_endpoints,
    write_resources,
    write_runtime,
)
from .ingress import ingress_endpoints, ready_values


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


def write_ready(root: Path, fleet: Fleet, region: str, ready: Collection[str]) -> Mapping[int, int]:
    """Limit each ingress of a region to as many jobs at once as it has ready GPUs.

    Args:
        root: folder of the fleet's files.
        fleet: as they were written for.
        region: of the ingresses.
        ready: addresses of the GPU servers that can take a job, busy ones included.

    Returns:
        Jobs at once, by number of the ingress.
    """
    limits = {}
    for number, ingress in enumerate(fleet.places()[region].dispatchers, start=1):
        limits[number] = len(set(ingress.servers) & set(ready))
        write_runtime(ingress_folder(root, region, number) / RUNTIME, ready_values(limits[number]))
    return limits


def write_servers(root: Path, region: str, servers: tuple[str, ...], number: int = 1) -> None:
    """Give an ingress other GPU servers, as when a region grows or shrinks.

    The limit on jobs goes up after servers were added, and down before they are taken away: in between there
    are never more jobs than servers.

    Args:
        root: folder of the fleet's files.
        region: of the ingress.
        servers: addresses of all its servers.
        number: of the ingress.

    Raises:
        InputError: the fleet has no such ingress.
    """
    folder = ingress_folder(root, region, number)
    if not (folder / ENDPOINTS).is_file():
        raise InputError(f"{region} has no ingress {number}: {folder / ENDPOINTS} is missing")
    write_servers_in(folder, region, servers)


def write_servers_in(folder: Path, region: str, servers: tuple[str, ...]) -> None:
    """The same, where the folder of the ingress's files is known."""
    endpoints, runtime = folder / ENDPOINTS, folder / RUNTIME
    if len(servers) < endpoints.read_text(encoding="utf-8").count("endpoint:"):
        write_runtime(runtime, ready_values(len(servers)))
    write_endpoints(endpoints, ingress_endpoints(region, servers))
    write_runtime(runtime, ready_values(len(servers)))
