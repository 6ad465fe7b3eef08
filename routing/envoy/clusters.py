"""Clusters: what an edge sees of regions.

There are two, of the same hosts. One takes jobs, and its counters and limits are about GPUs; the other takes pages
(documentation, the page for people), which a server answers while its GPU is busy.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ..data_plane import Limits
from .messages import Message, extension, file_source, seconds, typed

JOBS = "jobs"
PAGES = "pages"
ENDPOINTS = "regions"
"""Name of the endpoints that both clusters take from one file."""

# Out before two health checks have failed: hosts that take no connections. Not after the few that a dispatcher closes
# while it reloads. By nothing else, and above all
# not by status: answers that say "busy" would have busy hosts taken for broken ones (67 % failures, not 9 %).
_UNREACHABLE: Message = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 10,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_local_origin_success_rate": 0,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "max_ejection_percent": 100,
    "base_ejection_time": seconds(5),  # a health check that succeeds ends it before
}
_ANY_MANY = 1_000_000  # where something else is the limit
_BUFFER = 32 * 1024  # bytes, as Envoy's guide for edges has it


_PROTOCOL: Message = {
    # HTTP/2 between the tiers: a refused upload ends a stream, not a connection, and a connection that is closed
    # while a request is under way says whether that was taken.
    "explicit_http_config": {
        "http2_protocol_options": {
            # The body of a job that waits in a dispatcher's line would block the others of its connection.
            "max_concurrent_streams": 1,
            "initial_stream_window_size": 2**20,
            "initial_connection_window_size": 16 * 2**20,
            # A region that vanishes closes nothing: without a ping its jobs would hang for minutes.
            "connection_keepalive": {"interval": seconds(15), "timeout": seconds(15)},
        }
    },
    # Before the dispatcher closes it (`timeout http-keep-alive`), so that no job meets a closing connection.
    "common_http_protocol_options": {"idle_timeout": seconds(60)},
}


def edge_cluster(name: str, endpoints: PurePath, limits: Limits, transport_socket: Message | None) -> Message:
    """Return a cluster of regions, by the weights of the routing table."""
    found: Message = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": ENDPOINTS, "eds_config": file_source(endpoints)},
        # Exact shares in any window of a hundred requests; `weighted_clusters` wander by 10 points.
        "load_balancing_policy": _policy(
            "round_robin",
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
            locality_lb_config={"locality_weighted_lb_config": {}},
        ),
        "common_lb_config": {
            # At 0 Envoy never sends to hosts that it knows to be dead. At its 50 % it would, to all of them.
            "healthy_panic_threshold": {"value": 0},
            # By default changes of health and weight are gathered for 1 s before they count.
            "update_merge_window": seconds(0),
        },
        # A host that leaves the file gets no more requests. By default it does while it is healthy.
        "ignore_health_on_host_removal": True,
        # 2 s: the longest round trip between regions is 0.4 s, and TLS takes three.
        "connect_timeout": seconds(2),
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": _ANY_MANY,
                    "max_pending_requests": limits.connections,
                    "max_requests": limits.connections,
                    # The default is 3 for the whole cluster. `retry_budget` counts what waits in backoff wrongly and
                    # falls to its minimum (envoyproxy/envoy#30205).
                    "max_retries": limits.connections,
                }
            ]
        },
        "outlier_detection": _UNREACHABLE,
        "per_connection_buffer_limit_bytes": _BUFFER,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **_PROTOCOL
            )
        },
        "health_checks": [
            {
                "http_health_check": {"path": "/readyz", "codec_client_type": "HTTP2"},
                "interval": seconds(1),
                # Envoy checks a cluster that has had no request only each minute.
                "no_traffic_interval": seconds(1),
                "timeout": seconds(2),
                # A dispatcher that drains answers 503, which counts at once; one that is slow has another try.
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
            }
        ],
    }
    return found if transport_socket is None else {**found, "transport_socket": transport_socket}


def _policy(name: str, kind: str, **fields: Any) -> Message:
    chosen = extension(f"envoy.load_balancing_policies.{name}", kind, **fields)
    return {"policies": [{"typed_extension_config": chosen}]}
