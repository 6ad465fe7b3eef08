"""Traces, sent by OTLP over HTTP: a span of the edge, and one of each attempt.

An edge decides whose requests are traced; a GPU server goes by what `traceparent` says, which dispatchers pass on.
"""

from __future__ import annotations

from ..data_plane import Tracing
from .messages import Message, extension, seconds, socket_address

_CLUSTER = "traces"
HEADERS = ("traceparent", "tracestate")
"""What an edge takes away from users: strangers would decide what is traced."""


def tracing_of(tracing: Tracing, region: str) -> Message:
    """For the HTTP side of a listener.

    Args:
        tracing: of the fleet.
        region: where the proxy is.
    """
    sent_to = {"uri": tracing.url, "cluster": _CLUSTER, "timeout": seconds(5)}
    return {
        "provider": extension(
            "envoy.tracers.opentelemetry",
            "envoy.config.trace.v3.OpenTelemetryConfig",
            http_service={"http_uri": sent_to},
            service_name="stillmotion-edge",
        ),
        "random_sampling": {"value": 100 * tracing.share},
        "client_sampling": {"value": 0},  # of requests with x-client-trace-id, which anybody can send
        "spawn_upstream_span": True,
        "operation": "edge %REQ(:METHOD)% %PATH(NQ:PATH)%",
        "upstream_operation": "edge attempt",
        "custom_tags": [
            {"tag": "stillmotion.region", "literal": {"value": region}},
            {"tag": "stillmotion.request_id", "request_header": {"name": "x-request-id"}},
        ],
    }


def collector_cluster(tracing: Tracing) -> Message:
    """Who takes the traces. While nobody does they are lost, and requests go on."""
    host, _, port = tracing.collector.rpartition(":")
    endpoint = {"address": socket_address(f"{host}:{port}")}
    hosts = [{"lb_endpoints": [{"endpoint": endpoint}]}]
    return {
        "name": _CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": seconds(2),
        "load_assignment": {"cluster_name": _CLUSTER, "endpoints": hosts},
    }
