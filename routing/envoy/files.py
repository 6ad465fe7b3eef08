"""The files of an edge: its bootstrap, and what is replaced while it runs.

With certificates `tls.yaml` (for users), `peers.yaml` and `authority.yaml` (between edges and dispatchers), which point
to them: a renewed certificate is in use without a restart. With API keys `keys.yaml`, readable by its owner only: keys
stay out of the bootstrap, and are added and taken away while Envoy runs.

Envoy takes a file that is replaced in milliseconds. One that it cannot use changes nothing: it keeps what it had, and
counts `update_rejected`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from ..data_plane import Certificate, MutualTls, seen_from
from ..errors import InputError, RoutingError
from ..files import read_yaml, write_atomically, yaml_text
from ..fleet import Fleet, RetryPolicy
from ..table import RoutingTable
from .edge import (
    ROUTES_KIND,
    RUNTIME_LAYER,
    Message,
    delay_values,
    edge_bootstrap,
    edge_endpoints,
    edge_routes,
    resting_delay,
)

BOOTSTRAP, ENDPOINTS, ROUTES, RUNTIME = "bootstrap.yaml", "endpoints.yaml", "routes.yaml", "runtime.yaml"
TLS, PEERS, AUTHORITY, KEYS = "tls.yaml", "peers.yaml", "authority.yaml", "keys.yaml"

ENDPOINTS_KIND = "envoy.config.endpoint.v3.ClusterLoadAssignment"
RUNTIME_KIND = "envoy.service.runtime.v3.Runtime"
SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # a kind of message
EXTENSION_CONFIG = "envoy.config.core.v3.TypedExtensionConfig"
SHORTEST_KEY = 16  # characters; about 80 bits when drawn from letters and digits


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
    write_runtime(folder / RUNTIME, resting_delay(fleet.retry.delay))
    if plane.tls is not None:
        write_resources(folder / TLS, SECRET, [certificate_secret("users", plane.tls, base)])
    if plane.mutual_tls is not None:
        write_resources(folder / PEERS, SECRET, [certificate_secret("peers", plane.mutual_tls, base)])
        write_resources(folder / AUTHORITY, SECRET, [authority_secret(plane.mutual_tls, base)])
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
    kind = f"type.googleapis.com/{kind}"
    return yaml_text({"version_info": version, "resources": [{"@type": kind, **one} for one in found]})


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
    return write_runtime(edge_folder(root, region) / RUNTIME, delay_values(share, max_s))


def write_retries(root: Path, fleet: Fleet, region: str, policy: RetryPolicy) -> bool:
    """Set the retry policy of an edge; whether it is another now."""
    path = edge_folder(root, region) / ROUTES
    return write_resources(path, ROUTES_KIND, [edge_routes(fleet, region, policy)])


def key_config(keys: dict[str, str]) -> Message:
    """Return what the file of keys holds; `keys` are by client name, which GPU servers see in place of the key."""
    return {
        "name": "stillmotion.api_keys",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"key": key, "client": client} for client, key in keys.items()],
            "key_sources": [{"header": "X-API-Key"}, {"header": "Authorization"}],
            "forwarding": {"header": "x-stillmotion-client", "hide_credentials": True},
        },
    }


def read_keys(path: Path) -> dict[str, str]:
    """Keys by client name, from a YAML file.

    Raises:
        InputError: it cannot be read, has none, or one is no text, too short or there twice. No text of an
            error holds a key.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise InputError("should hold a key for each client, `client name: key`", file=str(path))
    keys: dict[str, str] = {}
    for client, key in content.items():
        name = str(client)
        if not isinstance(client, str) or not isinstance(key, str):
            raise InputError("client and key should be text; put them in quotes", key=name, file=str(path))
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            text = f"the key should have at least {SHORTEST_KEY} characters, without spaces"
            raise InputError(text, key=name, file=str(path))
        if key in keys.values():
            raise InputError("another client has the same key", key=name, file=str(path))
        keys[name] = key
    return keys


def authority_secret(tls: MutualTls, base: Path) -> Message:
    """The authority that edges and dispatchers check each other by; see `certificate_secret`."""
    path = seen_from(base, tls.ca)
    validation = {"trusted_ca": {"filename": str(path)}, "watched_directory": {"path": str(path.parent)}}
    return {"name": "authority", "validation_context": validation}


def certificate_secret(name: str, tls: Certificate, base: Path) -> Message:
    """A certificate, for a secret file. Such a file holds one secret.

    Args:
        name: `users` or `peers`.
        tls: with paths as seen from `base`.
        base: folder of the fleet file.
    """
    certificate, key = seen_from(base, tls.certificate), seen_from(base, tls.key)
    return {
        "name": name,
        "tls_certificate": {
            "certificate_chain": {"filename": str(certificate)},
            "private_key": {"filename": str(key)},
            "watched_directory": {"path": str(certificate.parent)},
        },
    }
