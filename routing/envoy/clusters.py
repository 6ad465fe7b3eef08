"""Clusters: what an edge sees of regions, and an ingress of its GPU servers.

Each tier has two clusters of the same hosts. One takes jobs, and its counters and limits are about GPUs; the
other takes pages (documentation, the page for people), which a server answers while its GPU is busy.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ..data_plane import Limits
from .messages import Message, extension, file_source, seconds, typed

JOBS = "jobs"
PAGES = "pages"
ENDPOINTS = "regions_or_servers"
"""Name of the endpoints that both clusters of a tier take from one file."""

# Out at once, and not after three health checks: hosts that take no connections. By nothing else, and above all
# not by status: answers that say "busy" would have busy hosts taken for broken ones (67 % failures, not 9 %).
_UNREACHABLE: Message = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 3,
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


def edge_cluster(name: str, endpoints: PurePath, limits: Limits, transport_socket: Message | None) -> Message:
    """Regions, by the weights of the routing table."""
    return _cluster(
        name,
        endpoints,
        # Exact shares in any window of a hundred requests; `weighted_clusters` wander by 10 points.
        balancing=_policy(
            "round_robin",
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
            locality_lb_config={"locality_weighted_lb_config": {}},
        ),
        # 2 s: the longest round trip between regions is 0.4 s, and TLS takes three.
        connect_timeout=seconds(2),
        thresholds={
            "max_connections": _ANY_MANY,
            "max_pending_requests": limits.connections,
            "max_requests": limits.connections,
            # The default is 3 for the whole cluster. `retry_budget` counts what waits in backoff wrongly and
            # falls to its minimum (envoyproxy/envoy#30205).
            "max_retries": limits.connections,
        },
        protocol={
            # HTTP/2 between the tiers: a refused upload ends a stream, not a connection, and a connection that
            # is closed while a request is under way says whether that was taken.
            "explicit_http_config": {
                "http2_protocol_options": {
                    # One connection's congestion window is shared by its streams; more connections carry more.
                    "max_concurrent_streams": 16,
                    "initial_stream_window_size": 2**20,
                    "initial_connection_window_size": 16 * 2**20,
                    # A region that vanishes closes nothing: without a ping its jobs would hang for minutes.
                    "connection_keepalive": {"interval": seconds(15), "timeout": seconds(15)},
                }
            },
        },
        health_check={"path": "/readyz", "codec_client_type": "HTTP2"},
        timeout_s=2,
        **({} if transport_socket is None else {"transport_socket": transport_socket}),
    )


def jobs_cluster(endpoints: PurePath, gpus: int) -> Message:
    """GPU servers for jobs: the one with the fewest requests, of all, and no more requests than GPUs.

    Args:
        endpoints: file of the servers.
        gpus: limit of requests at once, until the runtime file has another (`requests_key`).
    """
    return _servers(JOBS, endpoints, {"max_requests": gpus, "max_pending_requests": gpus})


def pages_cluster(endpoints: PurePath) -> Message:
    """GPU servers for pages: these must not count as jobs, nor wait for a free GPU."""
    return _servers(PAGES, endpoints, {"max_requests": 1024})


def requests_key() -> str:
    """Runtime key of the number of requests that `jobs_cluster` lets through at once."""
    return f"circuit_breakers.{JOBS}.default.max_requests"


def _servers(name: str, endpoints: PurePath, thresholds: dict[str, int]) -> Message:
    return _cluster(
        name,
        endpoints,
        balancing=_policy(
            "least_request",
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
            # Of two random servers both may be busy while a third is free: that loses 41 % at 70 % load.
            selection_method="FULL_SCAN",
        ),
        connect_timeout=seconds(1),
        thresholds={"max_connections": _ANY_MANY, "max_retries": 1024, **thresholds},
        protocol={
            "explicit_http_config": {"http_protocol_options": {}},
            # A GPU server closes idle connections after 5 s (uvicorn's default). Were Envoy to keep them as
            # long, a job could be sent into one that is just being closed, and be lost.
            "common_http_protocol_options": {"idle_timeout": seconds(3)},
        },
        # A server that drains or loads answers 503, which counts at once; one that is slow has two further tries.
        health_check={"path": "/readyz"},
        timeout_s=2,
    )


def _cluster(
    name: str,
    endpoints: PurePath,
    *,
    balancing: Message,
    thresholds: dict[str, int],
    protocol: Message,
    health_check: Message,
    timeout_s: float,
    **more: Any,
) -> Message:
    options = typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **protocol)
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": ENDPOINTS, "eds_config": file_source(endpoints)},
        "load_balancing_policy": balancing,
        "common_lb_config": {
            # At 0 Envoy never sends to hosts that it knows to be dead. At its 50 % it would, to all of them.
            "healthy_panic_threshold": {"value": 0},
            # By default changes of health and weight are gathered for 1 s before they count.
            "update_merge_window": seconds(0),
        },
        # A host that leaves the file gets no more requests. By default it does while it is healthy.
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [thresholds]},
        "outlier_detection": _UNREACHABLE,
        "per_connection_buffer_limit_bytes": _BUFFER,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "health_checks": [
            {
                "http_health_check": health_check,
                "interval": seconds(1),
                # Envoy checks a cluster that has had no request only each minute.
                "no_traffic_interval": seconds(1),
                "timeout": seconds(timeout_s),
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
            }
        ],
        **more,
    }


def _policy(name: str, kind: str, **fields: Any) -> Message:
    chosen = extension(f"envoy.load_balancing_policies.{name}", kind, **fields)
    return {"policies": [{"typed_extension_config": chosen}]}
