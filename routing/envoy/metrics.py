"""A proxy's counters for a Prometheus of another machine: one page, since the admin page stays on loopback."""

from __future__ import annotations

from ..data_plane import Limits
from .clusters import JOBS
from .http import connection_manager, health_filter, listener
from .messages import Message, seconds, socket_address

_ADMIN = "admin"
_BUFFER = 2**20  # bytes; a page has some hundred kB


def metrics_listener(address: str, limits: Limits) -> Message:
    """`/metrics`, and `/readyz` for what starts and watches proxies. Without TLS and keys, for the operator's network.

    On a port that users do not reach.
    """
    route = {
        "match": {"path": "/metrics", "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
        "route": {"cluster": _ADMIN, "prefix_rewrite": "/stats/prometheus", "timeout": seconds(10)},
    }
    hosts = [{"name": "metrics", "domains": ["*"], "routes": [route]}]
    routes = {"route_config": {"name": "metrics", "virtual_hosts": hosts}}
    limited = {"request_timeout": seconds(10), "stream_idle_timeout": seconds(30)}
    manager = connection_manager("metrics", routes, [health_filter("/readyz", JOBS)], limits, **limited)
    # Counters are wanted most when there are too many connections.
    return {**listener("metrics", address, manager, _BUFFER), "ignore_global_conn_limit": True}


def admin_cluster(admin: str) -> Message:
    """The proxy's own admin page."""
    hosts = [{"endpoint": {"address": socket_address(admin)}}]
    return {
        "name": _ADMIN,
        "type": "STATIC",
        "connect_timeout": seconds(1),
        "per_connection_buffer_limit_bytes": _BUFFER,
        "load_assignment": {"cluster_name": _ADMIN, "endpoints": [{"lb_endpoints": hosts}]},
    }
