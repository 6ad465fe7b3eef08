"""What the experiment compares, and at which loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from routing.fleet import Fleet
from routing.schema import validated

REGIONS = ("a", "b", "c")
GPUS, SERVICE_S = 4, 1.0  # of a region; of a job, so long that the machine is not what is measured
TOTAL = GPUS * len(REGIONS)
CAPACITY_RPS = TOTAL / SERVICE_S
LOADS = (0.7, 0.9, 0.95, 1.1)
BURSTS = (2 * TOTAL, 5 * TOTAL)


@dataclass(frozen=True)
class Case:
    """One way to run the fleet, always with the control loop.

    Attributes:
        name: for people.
        retry, queue: of the fleet file.
    """

    name: str
    retry: Mapping[str, Any] = field(default_factory=dict)
    queue: Mapping[str, Any] = field(default_factory=dict)


NO_QUEUE = {"max_wait_s": 0.001}
"""No place in line: a dispatcher refuses what it has no free GPU for, and edges try again."""
MANY = {"attempts": 20, "base_interval_s": 0.2, "max_interval_s": 2.0}
"""What a fleet without queues was tuned to."""
FEW = {"attempts": 12, "base_interval_s": 0.1, "max_interval_s": 2.0}
"""Of docs/examples/small-fleet.yaml, for jobs of twice the time."""

CASES = (
    Case("one line a region", FEW),
    Case("no line, the edges retry", MANY, NO_QUEUE),
)


KEPT = {
    "name": "Envoy in the dispatcher's place, 19 retries (kept from before dispatchers)",
    "service_s": 0.5,
    "cells": [
        {"load": 0.7, "failed_share": 0.0, "home_share": 0.981, "attempts": 1.91, "gpu_attempts": 1.0,
         "p50_s": 0.508, "p95_s": 1.365, "p99_s": 2.125},
        {"load": 0.9, "failed_share": 0.0073, "home_share": 0.968, "attempts": 4.45, "gpu_attempts": 0.992,
         "p50_s": 0.745, "p95_s": 4.757, "p99_s": 6.877},
        {"load": 1.1, "failed_share": 0.0992, "home_share": 0.86, "attempts": 8.31, "gpu_attempts": 0.91,
         "p50_s": 1.6, "p95_s": 7.465, "p99_s": 9.357},
    ],
}  # fmt: skip
"""Figures of the last experiment with that fleet, which can no longer be run: version 0.1.0, two cores, same arrivals
process, jobs of half a second, 50 s a load."""


def fleet_of(case: Case) -> Fleet:
    """Return its fleet: three regions, 20 and 40 ms apart."""
    return validated(
        Fleet,
        {
            "regions": {name: {"gpus": GPUS} for name in REGIONS},
            "latency_ms": {"a": {"b": 20, "c": 40}, "b": {"c": 20}},
            "service_time_s": SERVICE_S,
            "rings_ms": [30, 60],
            "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}],
            "target_load": 0.75,
            "smoothing_s": 20 * SERVICE_S,
            "retry": dict(case.retry),
            "queue": dict(case.queue),
            "data_plane": {"limits": {"edge_threads": 1, "dispatcher_threads": 1}},
        },
    )
