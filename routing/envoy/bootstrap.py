"""The parts of an edge's bootstrap that are about no request: identity, admin page, live values, memory limits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from ..data_plane import Limits, Tracing
from .messages import Message, extension, file_source, seconds, socket_address
from .metrics import admin_cluster, metrics_listener
from .tracing import collector_cluster

RUNTIME_LAYER = "live"

SOURCE_TAG = "source_region"
DESTINATION_TAG = "destination_region"


def bootstrap(
    region: str,
    admin: str,
    limits: Limits,
    runtime: PurePath,
    listeners: Iterable[Message],
    clusters: Iterable[Message],
    metrics: str | None,
    tracing: Tracing | None = None,
) -> Message:
    """Return the bootstrap of an edge.

    Args:
        region: that it stands in. As the zone of the node it becomes the source of Envoy's counters by zone.
        admin: loopback address of the admin page.
        limits: of the fleet.
        runtime: file of live values.
        listeners, clusters: its own.
        metrics: address where others read its counters, or None.
        tracing: of the fleet.
    """
    listeners, clusters = list(listeners), list(clusters)
    if tracing is not None:
        clusters.append(collector_cluster(tracing))
    if metrics is not None:
        listeners.append(metrics_listener(metrics, limits))
        clusters.append(admin_cluster(admin))
    return {
        "node": {"id": f"edge.{region}", "cluster": "edge", "locality": {"region": region, "zone": region}},
        "admin": {
            "address": socket_address(admin),
            "allow_paths": [_page(path) for path in _ADMIN_PATHS],
            "ignore_global_conn_limit": True,
        },
        "layered_runtime": {
            "layers": [
                {"name": "files", "rtds_layer": {"name": RUNTIME_LAYER, "rtds_config": file_source(runtime)}},
            ]
        },
        "stats_config": {"stats_tags": _tags()},
        "overload_manager": _overload(limits),
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


# To look at, and to take a proxy out before it stops. Not to stop it, to change values behind the files' back or
# to reset counters: even on loopback others may share the machine.
_ADMIN_PATHS = (
    "/certs",
    "/clusters",
    "/config_dump",
    "/drain_listeners",
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/listeners",
    "/memory",
    "/ready",
    "/runtime",
    "/server_info",
    "/stats",
    "/stats/prometheus",
)


def _page(path: str) -> Message:
    return {"safe_regex": {"regex": rf"{path}(\?.*)?"}}  # Envoy matches the query with the path


def _tags() -> list[Message]:
    """`cluster.jobs.zone.<source>.<destination>.upstream_rq_...` as one name with two labels.

    Of each expression the first group leaves the name, and the second becomes the value.
    """
    return [
        {"tag_name": SOURCE_TAG, "regex": r"^cluster\.[^.]+\.zone\.(([^.]+)\.)[^.]+\."},
        {"tag_name": DESTINATION_TAG, "regex": r"^cluster\.[^.]+\.zone\.[^.]+\.(([^.]+)\.)"},
    ]


def _overload(limits: Limits) -> Message:
    """What a proxy gives up first, and last, when memory runs out: better that than to be killed with all jobs."""
    heap = "envoy.resource_monitors.fixed_heap"

    def at(share: float) -> list[Message]:
        return [{"name": heap, "threshold": {"value": share}}]

    return {
        "refresh_interval": seconds(0.25),
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},  # streams of 1 MiB and more
        "resource_monitors": [
            extension(
                heap,
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=limits.heap_mb * 2**20,
            ),
            extension(
                "envoy.resource_monitors.global_downstream_max_connections",
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=limits.connections,
            ),
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": at(0.80)},
            {"name": "envoy.overload_actions.disable_http_keepalive", "triggers": at(0.88)},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": at(0.92)},
            {
                # The largest first, as heap use goes on to rise. Of HTTP/2 alone: what HTTP/1.1 uploads hold is
                # not attributed to them.
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.94, "saturation_threshold": 0.98}}],
            },
            # Closed, and not left to wait (`stop_accepting_connections`): whoever calls can go elsewhere.
            {"name": "envoy.overload_actions.reject_incoming_connections", "triggers": at(0.97)},
        ],
    }
