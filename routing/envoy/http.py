"""What an edge's listeners share of HTTP: that they are safe to leave alone, and what their answers look like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..data_plane import Limits, bind_address
from .messages import Message, extension, header, seconds, socket_address
from .tracing import HEADERS

MIB = 2**20
SOURCE_HEADER = "x-stillmotion-source"
"""From edge to dispatcher: the region whose user it is."""
TIMEOUT_HEADER = "x-job-timeout-ms"
"""From the user: how long the job may take in all. From edge to dispatcher: the same, or what the edge gives it."""
"""To the user: the region that answered."""
ATTEMPTS_HEADER = "x-stillmotion-attempts"
"""To the user: how often the edge tried."""

_LOGGED = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "client": "%REQ(X-STILLMOTION-CLIENT)%",
    "address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ:PATH)%",
    "status": "%RESPONSE_CODE%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "region": "%RESP(X-STILLMOTION-REGION)%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
}
_SERVER = "stillmotion"
_RETRY_AFTER_S = 1

# Flags of Envoy's access log. A request whose answer was lost on the way may have been computed: its status must
# be none that an edge retries (Envoy's own would be 503).
_LOST = ["UC", "UR", "UPE", "LR"]
# The edge's circuit breaker: more requests at once than it takes.
_OVERFLOW = ["UO"]


def connection_manager(
    prefix: str, routes: Message, filters: Iterable[Message], limits: Limits, **more: Any
) -> Message:
    """The HTTP side of a listener.

    Args:
        prefix: of its counters.
        routes: `{"route_config": ...}` or `{"rds": ...}`.
        filters: before the router.
        limits: of the fleet.
        more: further fields.
    """
    router = extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
    )
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=prefix,
        codec_type="AUTO",
        **routes,
        **_identity(),
        **_strictness(limits),
        common_http_protocol_options={
            "idle_timeout": seconds(60),
            "headers_with_underscores_action": "REJECT_REQUEST",  # to servers, _ and - may be the same header
            "max_headers_count": 100,
        },
        http2_protocol_options={
            "max_concurrent_streams": 100,
            # An upload over 100 ms of round trip moves 10 MiB/s with this; the 64 KiB that Envoy's guide for
            # edges advises would make it 0.6.
            "initial_stream_window_size": MIB,
            "initial_connection_window_size": 16 * MIB,
        },
        local_reply_config=local_replies(),
        http_filters=[*filters, router],
        **more,
    )


def listener(
    name: str, address: str, manager: Message, buffer_bytes: int, transport_socket: Message | None = None
) -> Message:
    """A listener with one connection manager.

    Args:
        name: of the listener.
        address: that others connect to (`bind_address`).
        manager: as of `connection_manager`.
        buffer_bytes: that a connection may hold of what its client has not taken.
        transport_socket: TLS, or None.
    """
    chain: Message = {"filters": [manager]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
    return {
        "name": name,
        "address": socket_address(bind_address(address)),
        "per_connection_buffer_limit_bytes": buffer_bytes,
        "filter_chains": [chain],
    }


def health_filter(path: str, cluster: str) -> Message:
    """Answers `path` with 200 while 1 % of the cluster's hosts are healthy, of up to a hundred: any; else with 503.

    `/healthcheck/fail` of the admin page makes it 503 too: that is how a proxy is taken out before it stops.
    """
    return extension(
        f"stillmotion.health{path.replace('/', '.')}",
        "envoy.extensions.filters.http.health_check.v3.HealthCheck",
        pass_through_mode=False,
        headers=[{"name": ":path", "string_match": {"exact": path}}],
        # In whole percent: Envoy takes 0.5 for 0, and 0 for no condition.
        cluster_min_healthy_percentages={cluster: {"value": 1}},
    )


def access_log() -> Message:
    """A line of JSON for each request but health checks. It holds no key, no query and no picture."""
    return {
        **extension(
            "envoy.access_loggers.stdout",
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": _LOGGED},
        ),
        "filter": {"not_health_check_filter": {}},
    }


def local_replies() -> Message:
    """Answers that Envoy makes itself, in the shape of the service's own."""
    return {
        "mappers": [
            # As a busy GPU server answers, without a body: with one, an edge that retries would have to read
            # it or give up the connection.
            {
                "filter": _flags(_OVERFLOW),
                "status_code": 429,
                "headers_to_add": [header("retry-after", str(_RETRY_AFTER_S))],
                "body_format_override": {"text_format_source": {"inline_string": ""}},
            },
            {
                "filter": _flags(_LOST),
                "status_code": 502,
                "body_format_override": _error("lost", "the connection to the server was lost; it may have computed"),
            },
            _error_of(400, "bad_request", "the request is malformed"),
            _error_of(401, "unauthorized", "give an API key: the header X-API-Key"),
            _error_of(404, "not_found", "there is nothing here"),
            _error_of(408, "slow_upload", "the request did not arrive in time"),
            _error_of(413, "too_large", "the request is larger than this service takes"),
            _error_of(429, "rate_limited", "this API key sends more jobs than it may"),
            _error_of(426, "upgrade_required", "use HTTP/1.1 or HTTP/2"),
            _error_of(431, "too_large", "the headers are larger than this service takes"),
            _error_of(501, "not_implemented", "the request asks for what this service does not do"),
            _error_of(503, "unavailable", "no server can take this now", retry_after=True),
            _error_of(504, "deadline", "not finished in time"),
            # Whatever else Envoy may refuse. As `body_format` it would take the place of good answers too.
            _error_of(400, "refused", "the request cannot be served", and_above=True),
        ]
    }


def _identity() -> Message:
    """Who the client is, and which headers it may set: no request is believed when it says where it comes from."""
    return {
        "server_name": _SERVER,
        # From the connection, not from a header that anybody can send.
        "use_remote_address": True,
        "xff_num_trusted_hops": 0,
        # No address makes a client one of us. Envoy lets those that are set retries and timeouts by header.
        "internal_address_config": {"unix_sockets": False, "cidr_ranges": []},
        "generate_request_id": True,
        "preserve_external_request_id": False,
        "always_set_request_id_in_response": True,
        "early_header_mutation_extensions": [
            extension(
                "stillmotion.headers_of_ours",
                "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[
                    {"remove_on_match": {"key_matcher": {"prefix": prefix}}}
                    for prefix in ("x-envoy-", "x-stillmotion-", "x-job-deadline", *HEADERS)
                ],
            )
        ],
    }


def _strictness(limits: Limits) -> Message:
    """Time and size."""
    return {
        "max_request_headers_kb": limits.headers_kb,
        "request_headers_timeout": seconds(10),
        "delayed_close_timeout": seconds(1),
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _flags(flags: list[str]) -> Message:
    return {"response_flag_filter": {"flags": flags}}


def _error(code: str, message: str) -> Message:
    return {"json_format": {"error": message, "code": code, "field": None}}


def _error_of(status: int, code: str, message: str, *, retry_after: bool = False, and_above: bool = False) -> Message:
    value = {"default_value": status, "runtime_key": f"stillmotion.status_{status}"}
    mapper: Message = {
        "filter": {"status_code_filter": {"comparison": {"op": "GE" if and_above else "EQ", "value": value}}},
        "body_format_override": _error(code, message),
    }
    if retry_after:
        mapper["headers_to_add"] = [header("retry-after", str(_RETRY_AFTER_S))]
    return mapper
