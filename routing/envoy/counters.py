"""What edges count, read from their `/stats/prometheus`.

In PromQL the requests per second from region to region are
`sum by (source_region, destination_region) (rate(envoy_cluster_zone_upstream_rq{envoy_cluster_name="jobs",
envoy_response_code!~"429|503"}[20s]))`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .bootstrap import DESTINATION_TAG
from .clusters import JOBS

_LINE = re.compile(r"^(?P<name>envoy_cluster_[a-z_]+)\{(?P<labels>[^}]*)\} (?P<value>[-+.e\d]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_REFUSALS = {"429", "503"}

# A job is an attempt that is no retry. Attempts that met no connection and those that found no healthy host are
# counted by themselves.
_ATTEMPTS = (
    "envoy_cluster_upstream_rq_total",
    "envoy_cluster_upstream_rq_pending_failure_eject",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_cluster_upstream_cx_none_healthy",
)
_RETRIES = "envoy_cluster_upstream_rq_retry"


@dataclass(frozen=True)
class EdgeCounters:
    """Of an edge, since it started.

    Attributes:
        jobs: that arrived, each counted once: the demand of the region's users.
        attempts: first tries and retries.
        served: by destination region; refusals are left out.
        refused: jobs whose last attempt was refused, by the region that refused it.
    """

    jobs: float
    attempts: float
    served: Mapping[str, float]
    refused: Mapping[str, float]


def read_edge(text: str) -> EdgeCounters:
    """From the page of an edge. What was never counted is 0."""
    counted: dict[str, float] = defaultdict(float)
    served: dict[str, float] = defaultdict(float)
    refused: dict[str, float] = defaultdict(float)
    for name, labels, value in _samples(text):
        if name == "envoy_cluster_zone_upstream_rq":
            by_region = refused if labels.get("envoy_response_code") in _REFUSALS else served
            by_region[labels.get(DESTINATION_TAG, "")] += value
        else:
            counted[name] += value
    attempts = sum(counted[name] for name in _ATTEMPTS)
    return EdgeCounters(attempts - counted[_RETRIES], attempts, dict(served), dict(refused))


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Those of the cluster of jobs."""
    for line in _LINE.finditer(text):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels.get("envoy_cluster_name") == JOBS:
            yield line["name"], labels, float(line["value"])
