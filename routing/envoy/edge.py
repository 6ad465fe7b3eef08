"""The edge of a source region: takes users' requests, picks a region by the table, retries with backoff."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from ..data_plane import Place
from ..fleet import Fleet, RetryPolicy
from ..jobs import Jobs
from ..retries import RETRIABLE_CONDITIONS, RETRIABLE_STATUSES, attempt_groups, job_timeout_s
from ..table import RoutingTable
from . import delay, tls
from .bootstrap import bootstrap
from .clusters import ENDPOINTS, JOBS, PAGES, edge_cluster
from .http import (
    ATTEMPTS_HEADER,
    MIB,
    SOURCE_HEADER,
    TIMEOUT_HEADER,
    access_log,
    connection_manager,
    health_filter,
    listener,
)
from .keys import FILTER, key_filter
from .messages import Message, extension, file_source, header, seconds, socket_address, typed
from .rate_limit import client_descriptors, job_limits, limit_filter
from .tracing import tracing_of

ROUTES_KIND = "envoy.config.route.v3.RouteConfiguration"
ROUTES = "edge"
_IDLE_S = 60.0  # of what is no job
_BUFFER = "envoy.filters.http.buffer"
_WEIGHT = 1_000_000  # of a whole row of the table: shares of a millionth are kept


def edge_bootstrap(fleet: Fleet, region: str, place: Place, root: PurePath) -> Message:
    """All of an edge that does not change while it runs.

    Args:
        fleet: with its data plane.
        region: where the edge's users are.
        place: of the region.
        root: folder of the edge's files, as Envoy sees it.
    """
    plane = fleet.data_plane
    limits = plane.limits
    users = tls.users_socket(root / "tls.yaml") if plane.tls else None
    mutual = plane.mutual_tls
    peers = tls.calling_socket(mutual, root / "peers.yaml", root / "authority.yaml") if mutual else None
    manager = connection_manager(
        "edge",
        {"rds": {"route_config_name": ROUTES, "config_source": file_source(root / "routes.yaml")}},
        _filters(fleet, root),
        limits,
        request_timeout=seconds(limits.upload_s),
        stream_idle_timeout=seconds(_IDLE_S),
        **({"access_log": [access_log()]} if plane.access_log else {}),
        **({"tracing": tracing_of(plane.tracing, region)} if plane.tracing else {}),
    )
    return bootstrap(
        region,
        place.admin,
        limits,
        root / "runtime.yaml",
        # The answer goes into this buffer, so that a slow reader keeps no GPU from being counted as free.
        [listener("users", place.edge, manager, limits.response_mb * MIB, users)],
        [edge_cluster(name, root / "endpoints.yaml", limits, peers) for name in (JOBS, PAGES)],
        place.metrics,
        plane.tracing,
    )


def edge_routes(fleet: Fleet, region: str, policy: RetryPolicy | None = None) -> Message:
    """Routes of an edge, with its retry policy.

    Args:
        fleet: with its data plane.
        region: where the edge's users are.
        policy: for jobs; None: the fleet's.
    """
    timeout_s = job_timeout_s(fleet, policy)
    jobs: Message = {
        "match": {"safe_regex": {"regex": _regex(fleet.jobs)}, "headers": [_method("POST")]},
        # Counters of jobs by their last answer: `envoy_vhost_route_upstream_rq`.
        "stat_prefix": "jobs",
        "route": {
            "cluster": JOBS,
            # Of the whole job with all its attempts; `TIMEOUT_HEADER` of the user takes its place (`_filters`).
            # A dispatcher is told what is left of it (`x-envoy-expected-rq-timeout-ms`).
            "timeout": seconds(timeout_s),
            # A job is silent while it waits and computes. Above the limit before, which gives a proper answer.
            "idle_timeout": seconds(timeout_s + 5),
            "retry_policy": job_retries(policy or fleet.retry),
        },
        "request_headers_to_add": [_default_header(TIMEOUT_HEADER, str(round(timeout_s * 1000)))],
        # Above 1 MiB, its default, a body is sent once and not again.
        "request_body_buffer_limit": fleet.jobs.body_bytes,
    }
    if fleet.data_plane.rate_limit is not None:
        jobs["typed_per_filter_config"] = job_limits(fleet.data_plane.rate_limit)
        jobs["route"]["rate_limits"] = client_descriptors()
    bad_timeout: Message = {
        "match": {**jobs["match"], "headers": [_method("POST"), _no_timeout()]},
        "direct_response": {"status": 400},
    }
    pages: Message = {
        "route": {
            "cluster": PAGES,
            "timeout": seconds(15),
            # Safe to ask twice, whatever happened to the first.
            "retry_policy": {"retry_on": "5xx,reset,connect-failure,refused-stream", "num_retries": 2},
        },
    }
    alive: Message = {
        "match": {"path": "/livez"},
        "direct_response": {"status": 200, "body": {"inline_string": "alive\n"}},
    }
    if fleet.data_plane.api_keys is not None:
        alive["typed_per_filter_config"] = {FILTER: typed("envoy.config.route.v3.FilterConfig", disabled=True)}
    # By its length, before any of it is here: the buffer, which would wait for the body, is passed by.
    buffer_passed_by = typed("envoy.config.route.v3.FilterConfig", disabled=True)
    oversize: Message = {
        "match": {"prefix": "/", "headers": [_longer_than(fleet.jobs.body_bytes)]},
        "direct_response": {"status": 413},
        "typed_per_filter_config": {_BUFFER: buffer_passed_by},
    }
    others = [{"match": match, **pages} for match in _pages(fleet.jobs)]
    return {
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": ["*"],
                "routes": [oversize, alive, bad_timeout, jobs, *others],
                # By `x-envoy-attempt-count` a dispatcher knows who was refused before.
                "include_request_attempt_count": True,
                "request_headers_to_add": [header(SOURCE_HEADER, region)],
                "response_headers_to_add": [header(ATTEMPTS_HEADER, "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")],
                "response_headers_to_remove": ["x-envoy-overloaded", "x-envoy-upstream-service-time"],
            }
        ],
    }


def job_retries(policy: RetryPolicy) -> Message:
    """A retry policy whose retries compute nothing twice.

    A job is tried again when no server has begun it: the connection was not made, the stream was refused, or
    the answer is 429 (busy) or 503 (nobody there). Never after its answer was lost (`5xx`, `reset`).

    Envoy waits uniform(0, min(base * 2^(k-1), max)) before retry k. It would also take Retry-After of a refusal
    into account, if told to: not here, since the next attempt finds other servers.
    """
    if policy.attempts == 1:
        return {"num_retries": 0}
    return {
        "retry_on": ",".join([*RETRIABLE_CONDITIONS, "retriable-status-codes"]),
        "retriable_status_codes": list(RETRIABLE_STATUSES),
        "num_retries": policy.attempts - 1,
        "retry_back_off": {
            "base_interval": seconds(policy.base_interval_s),
            "max_interval": seconds(policy.max_interval_s),
        },
        # First by the table, then ring by ring (`attempt_groups`): who is refused has met a full line.
        "retry_priority": extension(
            "envoy.retry_priorities.previous_priorities",
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            update_frequency=1,
        ),
        # Within a row of several regions, another one: the picks go by the weights, so that one of 1 % takes some.
        "retry_host_predicate": [
            extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": 100,
    }


def edge_endpoints(fleet: Fleet, region: str, places: Mapping[str, Place], table: RoutingTable) -> Message:
    """The table's row, as localities: each is a region, its hosts are the dispatchers.

    Priorities are `attempt_groups`: retries get to the second and those after it by `job_retries`.
    """
    groups = attempt_groups(fleet, region, table.shares[region])
    found = [{name: share for name, share in group.items() if places[name].dispatchers} for group in groups]
    localities = [
        _locality(name, places[name], round(share * _WEIGHT), priority)
        for priority, group in enumerate(filter(None, found))
        for name, share in group.items()
    ]
    return {
        "cluster_name": ENDPOINTS,
        "endpoints": localities,
        # In percent. At the default of 140 the next regions would get a part as soon as less than 71 % of those
        # before are healthy; now they get none while one of them is.
        "policy": {"overprovisioning_factor": 10_000 * len(fleet.regions)},
    }


def _locality(name: str, place: Place, weight: int, priority: int) -> Message:
    return {
        "locality": {"region": name, "zone": name},
        "load_balancing_weight": max(1, weight),
        "priority": priority,
        "lb_endpoints": [
            {
                "endpoint": {"address": socket_address(dispatcher.address)},
                "load_balancing_weight": max(1, dispatcher.size),
            }
            for dispatcher in place.dispatchers
        ],
    }


def _filters(fleet: Fleet, root: PurePath) -> list[Message]:
    """In order: health needs no key, keys come before work, a whole request comes before delay and routing."""
    plane = fleet.data_plane
    whole = extension(
        _BUFFER,
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        # A request goes on when all of it is here: a slow upload keeps no GPU waiting. Larger ones: 413.
        max_request_bytes=fleet.jobs.body_bytes,
    )
    # The router takes its timeout from a header of its own, which users cannot send.
    taken = {"append": header("x-envoy-upstream-rq-timeout-ms", f"%REQ({TIMEOUT_HEADER})%")}
    timeout = extension(
        "stillmotion.timeout",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": [taken]},
    )
    keys = [] if plane.api_keys is None else [key_filter(root / "keys.yaml")]
    limits = [] if plane.rate_limit is None else [limit_filter()]
    health = [health_filter(path, JOBS) for path in ("/readyz", "/healthz")]
    return [*health, *keys, *limits, whole, timeout, *delay.filters(_regex(fleet.jobs))]


def _regex(jobs: Jobs) -> str:
    """Return a regular expression of the paths that take a GPU."""
    return "|".join(re.escape(path) for path in jobs.paths)


def _pages(jobs: Jobs) -> list[Message]:
    """Return matches of what a server has for people and programs. Not its /metrics, which are the operator's."""
    found: list[Message] = [{"path": "/"}] if jobs.pages else []
    found += [{"path_separated_prefix": path} for path in jobs.pages]
    # By another method than POST: the server says what it takes.
    return [*found, {"safe_regex": {"regex": _regex(jobs)}}]


def _longer_than(size: int) -> Message:
    """Matches requests whose Content-Length is above this."""
    return {"name": "content-length", "range_match": {"start": size + 1, "end": 2**63 - 1}}


def _method(name: str) -> Message:
    return {"name": ":method", "string_match": {"exact": name}}


def _no_timeout() -> Message:
    """Matches requests with a timeout that is none: to ignore it would make a client wait for longer than it does."""
    text = {"safe_regex": {"regex": "[1-9][0-9]{0,8}"}}
    return {"name": TIMEOUT_HEADER, "string_match": text, "invert_match": True}


def _default_header(key: str, value: str) -> Message:
    return {"header": {"key": key, "value": value}, "append_action": "ADD_IF_ABSENT"}
