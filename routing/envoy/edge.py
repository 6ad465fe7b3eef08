"""The edge of a source region: takes users' requests, picks a region by the table, retries with backoff.

What it is stands in two templates, `edge.yaml.j2` and `routes.yaml.j2`; the endpoints are the routing table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from math import ceil
from pathlib import Path, PurePath
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context

from ..data_plane import Place, bind_address, host_and_port
from ..fleet import DelayPolicy, Fleet, RetryPolicy
from ..jobs import Jobs, RateLimit
from ..retries import RETRIABLE_CONDITIONS, RETRIABLE_STATUSES, attempt_groups, job_timeout_s
from ..table import RoutingTable

Message = dict[str, Any]
"""One message of Envoy's API. What Envoy reads is YAML or JSON of its protocol buffers; Envoy itself checks it."""

ROUTES_KIND = "envoy.config.route.v3.RouteConfiguration"
JOBS = "jobs"
"""Name of the cluster that takes jobs; counters have it."""
ENDPOINTS = "regions"
"""Name of the endpoints that both clusters take from one file."""
RUNTIME_LAYER = "live"

_WEIGHT = 1_000_000  # of a whole row of the table: shares of a millionth are kept
_OWN_ANSWERS = (
    (400, "bad_request", "the request is malformed"),
    (401, "unauthorized", "give an API key: the header X-API-Key"),
    (404, "not_found", "there is nothing here"),
    (408, "slow_upload", "the request did not arrive in time"),
    (413, "too_large", "the request is larger than this service takes"),
    (429, "rate_limited", "this API key sends more jobs than it may"),
    (426, "upgrade_required", "use HTTP/1.1 or HTTP/2"),
    (431, "too_large", "the headers are larger than this service takes"),
    (501, "not_implemented", "the request asks for what this service does not do"),
    (503, "unavailable", "no server can take this now"),
    (504, "deadline", "not finished in time"),
)
"""Answers that Envoy makes itself, by status, in the shape of the service's own."""

STEPS = 8
"""Filters of marginal delay: Envoy's fault filter in front of the router, where retries do not pass again. A filter has
one delay and draws for itself whether to apply it. So that delays spread over 0 to `max_s`, and a share of 1 delays
each job once, each filter is for the requests whose id ends in its two hexadecimal digits: Envoy draws the id, and a
request has one. All draw with the same probability."""
_SHARE, _MILLION = "stillmotion.delay.share", 1_000_000


def edge_bootstrap(fleet: Fleet, region: str, place: Place, root: PurePath) -> Message:
    """Return all of an edge that does not change while it runs.

    Args:
        fleet: with its data plane.
        region: where the edge's users are.
        place: of the region.
        root: folder of the edge's files, as Envoy sees it.
    """
    plane = fleet.data_plane
    found = _filled(
        "edge.yaml.j2",
        root,
        region=region,
        place=place,
        plane=plane,
        limits=plane.limits,
        mutual_tls=plane.mutual_tls,
        jobs=fleet.jobs,
        job_paths=_regex(fleet.jobs),
        own_answers=_OWN_ANSWERS,
        delay_steps=STEPS,
    )
    edge: Message = found["edge"]
    return edge


def edge_routes(fleet: Fleet, region: str, policy: RetryPolicy | None = None) -> Message:
    """Return the routes of an edge, with its retry policy.

    Args:
        fleet: with its data plane.
        region: where the edge's users are.
        policy: for jobs; None: the fleet's.
    """
    limit = fleet.data_plane.rate_limit
    found = _filled(
        "routes.yaml.j2",
        PurePath(),
        region=region,
        plane=fleet.data_plane,
        jobs=fleet.jobs,
        job_paths=_regex(fleet.jobs),
        policy=policy or fleet.retry,
        retry_on=",".join([*RETRIABLE_CONDITIONS, "retriable-status-codes"]),
        statuses=RETRIABLE_STATUSES,
        timeout_s=job_timeout_s(fleet, policy),
        buckets=[] if limit is None else list(_buckets(limit)),
        retry_after="" if limit is None else str(max(1, ceil(1 / limit.rps))),
    )
    routes: Message = found["routes"]
    return routes


def edge_endpoints(fleet: Fleet, region: str, places: Mapping[str, Place], table: RoutingTable) -> Message:
    """Return the table's row, as localities: each is a region, its hosts are the dispatchers.

    Priorities are `attempt_groups`: retries get to the second and those after it by the retry policy.
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


def delay_values(share: float, max_s: float) -> dict[str, Any]:
    """Runtime values that delay a share of the jobs by uniform(0, max_s), in `STEPS` steps.

    Step i waits (i + 1/2) / STEPS * max_s, so that the mean is max_s / 2.
    """
    values: dict[str, Any] = {_SHARE: {"numerator": round(share * _MILLION), "denominator": "MILLION"}}
    for step in range(STEPS):
        values[f"stillmotion.delay.step_{step}_ms"] = round((step + 0.5) / STEPS * max_s * 1000)
    return values


def resting_delay(policy: DelayPolicy) -> dict[str, Any]:
    """Runtime values while no burst is seen."""
    return delay_values(policy.share, policy.max_s)


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


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def socket_address(address: str) -> Message:
    """An `Address` of the fleet."""
    host, port = host_and_port(address)
    return {"socket_address": {"address": host, "port_value": port}}


def file_source(path: PurePath) -> Message:
    """Configuration that Envoy reads from a file, again each time something is renamed in its folder.

    The folder is watched, not the file: Kubernetes replaces a mounted file by a link one level above it.
    """
    watched = {"path": str(path.parent)}
    return {"path_config_source": {"path": str(path), "watched_directory": watched}, "resource_api_version": "V3"}


def _regex(jobs: Jobs) -> str:
    """Return a regular expression of the paths that take a GPU."""
    return "|".join(re.escape(path) for path in jobs.paths)


def _buckets(limit: RateLimit) -> Iterator[dict[str, Any]]:
    """Give the token bucket of each client that has one of its own, and that which each of the others has."""
    for client, rps in (*limit.clients.items(), (None, limit.rps)):
        size = max(1, round(limit.burst * rps / limit.rps))
        # Envoy fills in whole tokens: one at a time, or some each 50 ms, which is as often as it takes.
        tokens = max(1, ceil(rps * 0.05))
        yield {"client": client, "size": max(size, tokens), "tokens": tokens, "every_s": tokens / rps}


def _filled(template: str, root: PurePath, **values: Any) -> Any:
    """Return the content of a template; files are named as seen from `root`."""
    text = _templates().get_template(template).render(**values, root=root)
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe


@cache
def _templates() -> Environment:
    # autoescape is for HTML; what goes into these files is numbers, checked names, and text as JSON.
    found = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {
        "address": lambda address: json.dumps(socket_address(address)),
        "bind": bind_address,
        "file": pass_context(lambda context, name: json.dumps(file_source(context["root"] / name))),
        "seconds": seconds,
    }
    return found
