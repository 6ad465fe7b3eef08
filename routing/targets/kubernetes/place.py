"""The files of proxies as pods have them: ports of their own, and paths of mounted volumes."""

from __future__ import annotations

from math import ceil
from pathlib import Path, PurePosixPath

from ...data_plane import Certificate, DataPlane, MutualTls, Place, seen_from
from ...dispatcher.config import Settings
from ...dispatcher.files import SOCKET
from ...envoy.edge import ROUTES_KIND, edge_bootstrap, edge_endpoints, edge_routes, resting_delay
from ...envoy.files import (
    AUTHORITY,
    BOOTSTRAP,
    ENDPOINTS,
    ENDPOINTS_KIND,
    EXTENSION_CONFIG,
    KEYS,
    PEERS,
    ROUTES,
    RUNTIME,
    RUNTIME_KIND,
    SECRET,
    TLS,
    authority_secret,
    certificate_secret,
    key_config,
    read_keys,
    resources_text,
    runtime_resource,
)
from ...fleet import Fleet
from ...retries import job_timeout_s
from ...table import RoutingTable
from ...yaml_text import yaml_text

USERS_PORT, EDGES_PORT, METRICS_PORT, ADMIN_PORT, GPU_PORT, CONTROL_PORT = 8443, 8444, 9903, 9902, 3000, 9900
"""Of containers; `deploy/kubernetes/base` has them too."""
LIVE = PurePosixPath("/run/stillmotion")
"""Folder of what changes in a proxy's pod: an edge's files, a dispatcher's socket."""
DISPATCHER_FILES = PurePosixPath("/etc/stillmotion/files")
"""Folder of a dispatcher's files, in its pod."""
USERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/tls")
PEERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/peers")
_ADMIN = "127.0.0.1:9901"
_SPARE_S = 10
"""Between the end of a drain and the kill."""
GPU_LEAVE_S = 8
"""preStop of a GPU server: what dispatchers know of names is at most 5 s old (CoreDNS), and they ask each second."""


def edge_files(fleet: Fleet, region: str, table: RoutingTable) -> dict[str, str]:
    """Text of an edge's files, by name; without its keys."""
    plane = fleet.data_plane
    place = Place(edge=f"0.0.0.0:{USERS_PORT}", admin=_ADMIN, metrics=f"0.0.0.0:{METRICS_PORT}")
    files = {
        BOOTSTRAP: yaml_text(edge_bootstrap(fleet, region, place, LIVE)),
        ENDPOINTS: resources_text(ENDPOINTS_KIND, [edge_endpoints(fleet, region, fleet.places(), table)]),
        ROUTES: resources_text(ROUTES_KIND, [edge_routes(fleet, region)]),
        RUNTIME: resources_text(RUNTIME_KIND, [runtime_resource(resting_delay(fleet.retry.delay))]),
        **_peers(plane),
    }
    if plane.tls is not None:
        own = Certificate(certificate="tls.crt", key="tls.key")
        files[TLS] = resources_text(SECRET, [certificate_secret("users", own, Path(USERS_CERTIFICATE))])
    return files


def dispatcher_settings(fleet: Fleet, region: str, service: str, size: int) -> Settings:
    """Return what a dispatcher's files are made of.

    Args:
        fleet: with its data plane.
        region: where it is.
        service: whole name of the Service of its GPU servers; HAProxy knows no search domains.
        size: GPU servers behind it, at most.
    """
    mutual = fleet.data_plane.mutual_tls
    if mutual is not None:
        paths = {"ca": "ca.crt", "certificate": "tls.crt", "key": "tls.key"}
        mutual = mutual.model_copy(update={name: str(PEERS_CERTIFICATE / path) for name, path in paths.items()})
    return Settings(
        region=region,
        address=f"0.0.0.0:{EDGES_PORT}",
        admin=f"0.0.0.0:{ADMIN_PORT}",
        folder=DISPATCHER_FILES,
        socket=LIVE / SOCKET,
        discovered=f"{service}:{GPU_PORT}",
        size=size,
        certificate=mutual,
    )


def key_file(fleet: Fleet, base: Path) -> dict[str, str]:
    """Text of the file with API keys, by name; nothing where there are none."""
    if fleet.data_plane.api_keys is None:
        return {}
    keys = key_config(read_keys(seen_from(base, fleet.data_plane.api_keys)))
    return {KEYS: resources_text(EXTENSION_CONFIG, [keys])}


def edge_drain_s(fleet: Fleet) -> int:
    """Longest time from the first byte of a request at an edge to the last of its answer."""
    return ceil(fleet.data_plane.limits.upload_s + job_timeout_s(fleet))


def dispatcher_drain_s(fleet: Fleet) -> int:
    """The same at a dispatcher: the line, and a job."""
    return ceil(2 * max(fleet.queue.bounds_s(fleet.service_time_s)) + fleet.jobs.deadline_s)


def grace_s(fleet: Fleet, leave_s: float) -> dict[str, int]:
    """`terminationGracePeriodSeconds` of each kind of pod: time to leave, the longest job, and a little."""
    return {
        "edge": ceil(leave_s) + edge_drain_s(fleet) + _SPARE_S,
        "dispatcher": ceil(leave_s) + dispatcher_drain_s(fleet) + _SPARE_S,
        "gpu": GPU_LEAVE_S + ceil(fleet.jobs.deadline_s) + _SPARE_S,
    }


def _peers(plane: DataPlane) -> dict[str, str]:
    mutual = plane.mutual_tls
    if mutual is None:
        return {}
    own = MutualTls(ca="ca.crt", certificate="tls.crt", key="tls.key")
    where = Path(PEERS_CERTIFICATE)
    return {
        PEERS: resources_text(SECRET, [certificate_secret("peers", own, where)]),
        AUTHORITY: resources_text(SECRET, [authority_secret(own, where)]),
    }
