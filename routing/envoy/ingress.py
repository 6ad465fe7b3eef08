"""The ingress of a destination region: finds the free GPU, and refuses at once when there is none."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ..data_plane import Dispatcher
from ..fleet import Fleet
from ..retries import RETRIABLE_CONDITIONS
from . import tls
from .bootstrap import bootstrap
from .clusters import ENDPOINTS, JOBS, PAGES, jobs_cluster, pages_cluster, requests_key
from .http import JOB_PATHS, MIB, REGION_HEADER, SOURCE_HEADER, connection_manager, health_filter, listener
from .messages import Message, extension, header, seconds, socket_address
from .tracing import tracing_of


def ingress_bootstrap(
    fleet: Fleet, region: str, ingress: Dispatcher, root: PurePath, *, emulate_latency: bool = False
) -> Message:
    """All of an ingress that does not change while it runs.

    Args:
        fleet: with its data plane.
        region: where the GPU servers are.
        ingress: one of the region's.
        root: folder of the ingress's files, as Envoy sees it.
        emulate_latency: delay requests by the round trip to the region they come from, for fleets on one machine.
    """
    plane = fleet.data_plane
    limits, mutual = plane.limits, plane.mutual_tls
    peers = tls.accepting_socket(mutual, root / "peers.yaml", root / "authority.yaml") if mutual else None
    manager = connection_manager(
        "ingress",
        {"route_config": ingress_routes(region, fleet.jobs.deadline_s)},
        [health_filter("/readyz", JOBS), *(latency_filters(fleet, region) if emulate_latency else ())],
        limits,
        faces_users=False,
        # Above the routes' own limit, which gives a proper answer.
        stream_idle_timeout=seconds(fleet.jobs.deadline_s + 5),
        **({"tracing": tracing_of(plane.tracing, "ingress", region)} if plane.tracing else {}),
    )
    endpoints = root / "endpoints.yaml"
    return bootstrap(
        "ingress",
        region,
        ingress.admin,
        limits,
        root / "runtime.yaml",
        [listener("edges", ingress.address, manager, MIB, peers)],
        [jobs_cluster(endpoints, ingress.size), pages_cluster(endpoints)],
        None,
        plane.tracing,
    )


def ingress_routes(region: str, job_s: float) -> Message:
    """Jobs to the free GPU, pages to any server."""
    jobs = {
        "match": {"safe_regex": {"regex": JOB_PATHS}, "headers": [_POST]},
        "route": {
            "cluster": JOBS,
            "timeout": seconds(job_s),
            # A server that died since it was last seen: nothing has reached it, and the next one is near. A busy
            # one (429) is the edge's to retry, which waits first.
            "retry_policy": {
                "retry_on": ",".join(RETRIABLE_CONDITIONS),
                "num_retries": 3,
                "retry_back_off": {"base_interval": seconds(0.005), "max_interval": seconds(0.05)},
                "retry_host_predicate": [
                    extension(
                        "envoy.retry_host_predicates.previous_hosts",
                        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                    )
                ],
                "host_selection_retry_max_attempts": 10,
            },
        },
    }
    pages = {"match": {"prefix": "/"}, "route": {"cluster": PAGES, "timeout": seconds(15)}}
    return {
        "name": "ingress",
        "virtual_hosts": [
            {
                "name": "ingress",
                "domains": ["*"],
                "routes": [jobs, pages],
                # Whatever a server was told that its region is.
                "response_headers_to_add": [header(REGION_HEADER, region)],
            }
        ],
    }


def latency_filters(fleet: Fleet, region: str) -> list[Message]:
    """A delay for each region that requests may come from, by the header that edges set."""
    return [
        extension(
            f"stillmotion.latency.{source}",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
            delay={
                "fixed_delay": seconds(fleet.latency(source, region) / 1000),
                "percentage": {"numerator": 100, "denominator": "HUNDRED"},
            },
            headers=[{"name": SOURCE_HEADER, "string_match": {"exact": source}}],
        )
        for source in fleet.names
        if fleet.latency(source, region) > 0
    ]


def ingress_endpoints(region: str, servers: tuple[str, ...]) -> Message:
    """GPU servers, all equal."""
    hosts = [{"endpoint": {"address": socket_address(server)}} for server in servers]
    locality = {"locality": {"region": region, "zone": region}, "lb_endpoints": hosts}
    return {"cluster_name": ENDPOINTS, "endpoints": [locality] if hosts else []}


def ready_values(ready: int) -> dict[str, Any]:
    """Runtime values for so many GPUs that can take a job."""
    return {requests_key(): ready}


_POST = {"name": ":method", "string_match": {"exact": "POST"}}
