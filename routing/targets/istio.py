"""Istio: shares by locality in a DestinationRule, retries in a VirtualService.

The mesh spans the regions, its localities carry their names, and one Service holds the dispatchers of all regions.
Istio 1.29 or newer, for `backoff`.
"""

from __future__ import annotations

from ..fleet import Fleet
from ..retries import RETRIABLE_CONDITIONS, RETRIABLE_STATUSES, job_timeout_s
from ..table import RoutingTable
from .manifests import Manifest, Place, duration, manifest
from .weights import integer_weights

_API = "networking.istio.io/v1"
SERVICE = "dispatcher"


def manifests(fleet: Fleet, table: RoutingTable, place: Place) -> list[Manifest]:
    """Both resources."""
    return [destination_rule(fleet, table, place), virtual_service(fleet, place)]


def notes(fleet: Fleet) -> list[str]:
    """What of the fleet's policy Istio does not do."""
    found = [
        "with distribute Istio does not fail over: what leaves a dead region is that its hosts are not ready",
        "the longest backoff is 10 times the base interval: Istio takes no other",
        "a body above 1 MiB is not sent again, unless an EnvoyFilter raises the buffer of the route",
    ]
    if fleet.retry.delay.share > 0:
        found.append("the delay is left out: while a VirtualService has a fault, Istio retries nothing")
    return found


def destination_rule(fleet: Fleet, table: RoutingTable, place: Place) -> Manifest:
    """The table: from each region to the localities of its row."""
    connections = fleet.data_plane.limits.connections
    spread = [
        {"from": f"{source}/*", "to": {f"{to}/*": weight for to, weight in integer_weights(row).items()}}
        for source, row in table.shares.items()
    ]
    spec = {
        "host": _host(place),
        "trafficPolicy": {
            "loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {"enabled": True, "distribute": spread}},
            "connectionPool": {
                # Retries that wait at once; the default is the same as none.
                "http": {
                    "h2UpgradePolicy": "UPGRADE",
                    "http1MaxPendingRequests": connections,
                    "http2MaxRequests": connections,
                    "maxRetries": connections,
                },
                "tcp": {"connectTimeout": duration(2)},
            },
            # Hosts that take no connections, and by no status: one that answers "busy" is well.
            "outlierDetection": {
                "splitExternalLocalOriginErrors": True,
                "consecutiveLocalOriginFailures": 3,
                "consecutive5xxErrors": 0,
                "consecutiveGatewayErrors": 0,
                "baseEjectionTime": duration(5),
                "maxEjectionPercent": 100,
            },
        },
    }
    return manifest(_API, "DestinationRule", SERVICE, place, spec)


def virtual_service(fleet: Fleet, place: Place) -> Manifest:
    """Retries of jobs; pages go without."""
    policy = fleet.retry
    route = [{"destination": {"host": _host(place), "port": {"number": place.port}}}]
    retries = {
        "attempts": policy.attempts - 1,
        "retryOn": ",".join([*RETRIABLE_CONDITIONS, *(str(status) for status in RETRIABLE_STATUSES)]),
        "retryRemoteLocalities": True,
        "backoff": duration(policy.base_interval_s),
    }
    jobs = {
        "name": "jobs",
        "match": [{"uri": {"exact": path}, "method": {"exact": "POST"}} for path in fleet.jobs.paths],
        "route": route,
        "timeout": duration(job_timeout_s(fleet)),
        "retries": retries if policy.attempts > 1 else {"attempts": 0},
    }
    pages = {"name": "pages", "route": route, "timeout": duration(15)}
    return manifest(_API, "VirtualService", SERVICE, place, {"hosts": [_host(place)], "http": [jobs, pages]})


def _host(place: Place) -> str:
    return f"{SERVICE}.{place.namespace}.svc.cluster.local"
