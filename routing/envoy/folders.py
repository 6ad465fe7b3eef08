"""The files of an edge: its bootstrap, and what is replaced while it runs.

With certificates `tls.yaml` (for users), `peers.yaml` and `authority.yaml` (between edges and dispatchers); with API
keys `keys.yaml`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from ..data_plane import seen_from
from ..errors import RoutingError
from ..files import write_atomically
from ..fleet import Fleet
from ..table import RoutingTable
from ..yaml_text import yaml_text
from . import delay, tls
from .bootstrap import RUNTIME_LAYER
from .edge import ROUTES_KIND, edge_bootstrap, edge_endpoints, edge_routes
from .keys import EXTENSION_CONFIG, key_config, read_keys
from .messages import Message, discovery

BOOTSTRAP, ENDPOINTS, ROUTES, RUNTIME = "bootstrap.yaml", "endpoints.yaml", "routes.yaml", "runtime.yaml"
TLS, PEERS, AUTHORITY, KEYS = "tls.yaml", "peers.yaml", "authority.yaml", "keys.yaml"

ENDPOINTS_KIND = "envoy.config.endpoint.v3.ClusterLoadAssignment"
RUNTIME_KIND = "envoy.service.runtime.v3.Runtime"


def edge_folder(root: Path, region: str) -> Path:
    """Folder of a region's edge."""
    return root / region / "edge"


def write_edge(
    folder: Path,
    fleet: Fleet,
    region: str,
    table: RoutingTable,
    *,
    base: Path = Path(),
    seen_at: PurePath | None = None,
) -> None:
    """Write all files of a region's edge. Those that are as they were are left alone, so that Envoy has nothing to do.

    Args:
        folder: to write to.
        fleet: with its data plane.
        region: where the edge's users are.
        table: of this fleet.
        base: folder that the paths of certificates and keys are seen from: the fleet file's.
        seen_at: where Envoy will find `folder`; None: where it is.

    Raises:
        RoutingError: a file cannot be written, or API keys cannot be read.
    """
    plane, places = fleet.data_plane, fleet.places()
    write_resources(folder / ENDPOINTS, ENDPOINTS_KIND, [edge_endpoints(fleet, region, places, table)])
    write_resources(folder / ROUTES, ROUTES_KIND, [edge_routes(fleet, region)])
    write_runtime(folder / RUNTIME, delay.resting(fleet.retry.delay))
    if plane.tls is not None:
        write_resources(folder / TLS, tls.SECRET, [tls.certificate_secret(tls.USERS, plane.tls, base)])
    if plane.mutual_tls is not None:
        write_resources(folder / PEERS, tls.SECRET, [tls.certificate_secret(tls.PEERS, plane.mutual_tls, base)])
        write_resources(folder / AUTHORITY, tls.SECRET, [tls.authority_secret(plane.mutual_tls, base)])
    if plane.api_keys is not None:
        keys = key_config(read_keys(seen_from(base, plane.api_keys)))
        write_resources(folder / KEYS, EXTENSION_CONFIG, [keys], secret=True)
    write_message(folder / BOOTSTRAP, edge_bootstrap(fleet, region, places[region], seen_at or folder.resolve()))


def write_endpoints(path: Path, endpoints: Message) -> bool:
    """Replace a file of endpoints, as of `edge_endpoints`; whether it is another now."""
    return write_resources(path, ENDPOINTS_KIND, [endpoints])


def write_runtime(path: Path, values: dict[str, Any]) -> bool:
    """Replace a file of live values; whether it is another now."""
    return write_resources(path, RUNTIME_KIND, [runtime_resource(values)])


def runtime_resource(values: dict[str, Any]) -> Message:
    """What a file of live values holds."""
    return {"name": RUNTIME_LAYER, "layer": values}


def write_resources(path: Path, kind: str, resources: Iterable[Message], *, secret: bool = False) -> bool:
    """Replace a file that Envoy watches; whether it is another now.

    Its version is a digest of what it says, which Envoy shows when it has taken it (`cluster.jobs.version_text`).
    """
    return _write(path, resources_text(kind, resources), secret=secret)


def resources_text(kind: str, resources: Iterable[Message]) -> str:
    """Text of a file that Envoy watches; see `write_resources`."""
    found = list(resources)
    version = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]
    return yaml_text(discovery(kind, found, version))


def write_message(path: Path, message: Message) -> bool:
    """Replace a file at once, if its content is another; whether it was.

    Raises:
        RoutingError: it cannot be written; the old one is as it was.
    """
    return _write(path, yaml_text(message))


def _write(path: Path, text: str, *, secret: bool = False) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if secret:
            path.touch(mode=0o600)
        if path.is_file() and path.read_bytes() == text.encode():
            return False
    except OSError as error:
        raise RoutingError(f"{path}: cannot be written ({error.strerror})") from error
    write_atomically(path, text)
    return True
