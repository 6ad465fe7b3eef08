"""What a dispatcher's page (`/metrics`, HAProxy's Prometheus exporter) says of its jobs and GPU servers."""

from __future__ import annotations

import re
from dataclasses import dataclass

PAGE = "/metrics?scope=backend"
"""Without the series of each GPU server, which are most of the page."""
_LINE = re.compile(r'^haproxy_backend_(\w+)\{proxy="gpus"(?:,(?:state|code)="(\w+)")?\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class DispatcherCounters:
    """One dispatcher.

    Attributes:
        ready: GPU servers that pass its health check, busy or not.
        known: GPU servers in its configuration.
        computing: jobs at them now.
        waiting: jobs in its line now.
        served: jobs that were answered with 2xx, since it started.
        refused: jobs that were answered with 429 or another 4xx, since it started.
    """

    ready: int
    known: int
    computing: int
    waiting: int
    served: float
    refused: float


def read_dispatcher(text: str) -> DispatcherCounters:
    """Read the page of a dispatcher. What it does not say is 0."""
    found = {(name, label): float(value) for name, label, value in _LINE.findall(text)}

    def value(name: str, label: str = "") -> float:
        return found.get((name, label), 0.0)

    waiting = value("current_queue")
    return DispatcherCounters(
        ready=round(value("active_servers")),
        known=round(sum(count for (name, _), count in found.items() if name == "agg_server_check_status")),
        computing=round(max(0.0, value("current_sessions") - waiting)),
        waiting=round(waiting),
        served=value("http_responses_total", "2xx"),
        refused=value("http_responses_total", "4xx"),
    )
