"""The files of proxies as pods have them: ports of their own, and paths of mounted volumes."""

from __future__ import annotations

from math import ceil
from pathlib import Path, PurePosixPath

from ...data_plane import Certificate, DataPlane, Dispatcher, MutualTls, Place, seen_from
from ...envoy import delay, tls
from ...envoy.edge import ROUTES_KIND, edge_bootstrap, edge_endpoints, edge_routes, patience_s
from ...envoy.folders import (
    AUTHORITY,
    BOOTSTRAP,
    ENDPOINTS,
    ENDPOINTS_KIND,
    KEYS,
    PEERS,
    ROUTES,
    RUNTIME,
    RUNTIME_KIND,
    TLS,
    resources_text,
    runtime_resource,
)
from ...envoy.ingress import ingress_bootstrap, ingress_endpoints, ready_values
from ...envoy.keys import EXTENSION_CONFIG, key_config, read_keys
from ...fleet import Fleet
from ...table import RoutingTable
from ...yaml_text import yaml_text

USERS_PORT, EDGES_PORT, METRICS_PORT, GPU_PORT, CONTROL_PORT = 8443, 8444, 9903, 3000, 9900
"""Of containers; `deploy/kubernetes/base` has them too."""
LIVE = PurePosixPath("/run/stillmotion")
"""Folder of a proxy's files, in its pod."""
USERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/tls")
PEERS_CERTIFICATE = PurePosixPath("/etc/stillmotion/peers")
_ADMIN = "127.0.0.1:9901"
_SPARE_S = 10
"""Between the end of a drain and the kill."""
GPU_LEAVE_S = 8
"""preStop of a GPU server: the name that followers look up is at most 5 s old (CoreDNS), and they look each second."""


def edge_files(fleet: Fleet, region: str, table: RoutingTable) -> dict[str, str]:
    """Text of an edge's files, by name; without its keys."""
    plane = fleet.data_plane
    place = Place(edge=f"0.0.0.0:{USERS_PORT}", admin=_ADMIN, metrics=f"0.0.0.0:{METRICS_PORT}")
    files = {
        BOOTSTRAP: yaml_text(edge_bootstrap(fleet, region, place, LIVE)),
        ENDPOINTS: resources_text(ENDPOINTS_KIND, [edge_endpoints(fleet, region, fleet.places(), table)]),
        ROUTES: resources_text(ROUTES_KIND, [edge_routes(fleet, region)]),
        RUNTIME: resources_text(RUNTIME_KIND, [runtime_resource(delay.resting(fleet.retry.delay))]),
        **_peers(plane),
    }
    if plane.tls is not None:
        own = Certificate(certificate="tls.crt", key="tls.key")
        files[TLS] = resources_text(tls.SECRET, [tls.certificate_secret(tls.USERS, own, Path(USERS_CERTIFICATE))])
    return files


def ingress_files(fleet: Fleet, region: str, size: int) -> dict[str, str]:
    """Text of an ingress's files, by name. It knows no GPU server yet.

    Args:
        fleet: with its data plane.
        region: where it is.
        size: GPU servers behind it, at most.
    """
    ingress = Dispatcher(address=f"0.0.0.0:{EDGES_PORT}", gpus=size, admin=_ADMIN)
    return {
        BOOTSTRAP: yaml_text(ingress_bootstrap(fleet, region, ingress, LIVE)),
        ENDPOINTS: resources_text(ENDPOINTS_KIND, [ingress_endpoints(region, ())]),
        RUNTIME: resources_text(RUNTIME_KIND, [runtime_resource(ready_values(0))]),
        **_peers(fleet.data_plane),
    }


def key_file(fleet: Fleet, base: Path) -> dict[str, str]:
    """Text of the file with API keys, by name; nothing where there are none."""
    if fleet.data_plane.api_keys is None:
        return {}
    keys = key_config(read_keys(seen_from(base, fleet.data_plane.api_keys)))
    return {KEYS: resources_text(EXTENSION_CONFIG, [keys])}


def edge_drain_s(fleet: Fleet) -> int:
    """Longest time from the first byte of a request at an edge to the last of its answer."""
    return ceil(fleet.data_plane.limits.upload_s + patience_s(fleet))


def ingress_drain_s(fleet: Fleet) -> int:
    """The same at an ingress: a job's."""
    return ceil(fleet.jobs.deadline_s)


def grace_s(fleet: Fleet, leave_s: float) -> dict[str, int]:
    """`terminationGracePeriodSeconds` of each kind of pod: time to leave, the longest job, and a little."""
    return {
        "edge": ceil(leave_s) + edge_drain_s(fleet) + _SPARE_S,
        "ingress": ceil(leave_s) + ingress_drain_s(fleet) + _SPARE_S,
        "gpu": GPU_LEAVE_S + ingress_drain_s(fleet) + _SPARE_S,
    }


def _peers(plane: DataPlane) -> dict[str, str]:
    mutual = plane.mutual_tls
    if mutual is None:
        return {}
    own = MutualTls(ca="ca.crt", certificate="tls.crt", key="tls.key")
    where = Path(PEERS_CERTIFICATE)
    return {
        PEERS: resources_text(tls.SECRET, [tls.certificate_secret(tls.PEERS, own, where)]),
        AUTHORITY: resources_text(tls.SECRET, [tls.authority_secret(own, where)]),
    }
