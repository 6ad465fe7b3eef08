"""Gateway API: an HTTPRoute for each source region, on its own Gateway; retries and delay for Envoy Gateway.

The Gateway of a region is `edge-<region>`, and the Service of another's dispatchers `dispatcher-<region>`.
"""

from __future__ import annotations

from ..fleet import Fleet
from ..retries import RETRIABLE_CONDITIONS, RETRIABLE_STATUSES, job_timeout_s
from ..table import RoutingTable
from .manifests import Manifest, Place, duration, manifest
from .weights import integer_weights

_API = "gateway.networking.k8s.io/v1"
_ENVOY_GATEWAY = "gateway.envoyproxy.io/v1alpha1"
_JOB_PATHS = ("/animate", "/animate/stream")


def manifests(fleet: Fleet, table: RoutingTable, place: Place, source: str) -> list[Manifest]:
    """Resources of a source region."""
    return [http_route(fleet, table, place, source), traffic_policy(fleet, place, source)]


def notes(fleet: Fleet) -> list[str]:
    """What of the fleet's policy the target does not do."""
    found = ["weights of backends are odds, not quotas: in a hundred requests a share may be some points off"]
    if fleet.retry.delay.share > 0:
        found.append("the delay has one length, the mean of the fleet's")
    return found


def http_route(fleet: Fleet, table: RoutingTable, place: Place, source: str) -> Manifest:
    """The row of the table as weights of Services."""
    backends = [
        {"name": f"dispatcher-{name}", "port": place.port, "weight": weight}
        for name, weight in integer_weights(table.shares[source]).items()
    ]
    patience = duration(job_timeout_s(fleet))
    jobs = {
        "matches": [{"path": {"type": "Exact", "value": path}, "method": "POST"} for path in _JOB_PATHS],
        "backendRefs": backends,
        "timeouts": {"request": patience},
    }
    pages = {
        "matches": [
            *({"path": {"type": "Exact", "value": path}} for path in ("/", "/docs.json", "/schema.json")),
            {"path": {"type": "PathPrefix", "value": "/ui"}},
        ],
        "backendRefs": backends,
        "timeouts": {"request": duration(15)},
    }
    spec = {"parentRefs": [{"name": f"edge-{source}"}], "rules": [jobs, pages]}
    return manifest(_API, "HTTPRoute", f"stillmotion-{source}", place, spec)


def traffic_policy(fleet: Fleet, place: Place, source: str) -> Manifest:
    """What Envoy Gateway does with requests that are refused, delayed or held."""
    policy, limits = fleet.retry, fleet.data_plane.limits
    route = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": f"stillmotion-{source}"}
    spec: Manifest = {
        "targetRefs": [route],
        "retry": {
            "numRetries": policy.attempts - 1,
            "retryOn": {
                "triggers": [*RETRIABLE_CONDITIONS, "retriable-status-codes"],
                "httpStatusCodes": list(RETRIABLE_STATUSES),
            },
            "perRetry": {
                "backOff": {
                    "baseInterval": duration(policy.base_interval_s),
                    "maxInterval": duration(policy.max_interval_s),
                }
            },
        },
        "circuitBreaker": {
            "maxConnections": limits.connections,
            "maxPendingRequests": limits.connections,
            "maxParallelRequests": limits.connections,
            "maxParallelRetries": limits.connections,
        },
        # The whole request first: a body that is not held cannot be sent again.
        "requestBuffer": {"limit": f"{-(-fleet.jobs.body_bytes // 2**20)}Mi"},
        "healthCheck": {
            "active": {
                "type": "HTTP",
                "http": {"path": "/readyz", "expectedStatuses": [200]},
                "interval": duration(1),
                "timeout": duration(2),
                "unhealthyThreshold": 3,
                "healthyThreshold": 1,
            },
            "panicThreshold": 0,
        },
        "timeout": {"tcp": {"connectTimeout": duration(2)}, "http": {"requestTimeout": duration(job_timeout_s(fleet))}},
    }
    if policy.delay.share > 0:
        delay = {"fixedDelay": duration(policy.delay.max_s / 2), "percentage": round(100 * policy.delay.share, 4)}
        spec["faultInjection"] = {"delay": delay}
    return manifest(_ENVOY_GATEWAY, "BackendTrafficPolicy", f"stillmotion-{source}", place, spec)
