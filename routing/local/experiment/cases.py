"""What the experiment compares, and at which loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...fleet import Fleet
from ...schema import validated

REGIONS = ("a", "b", "c")
GPUS, SERVICE_S = 4, 0.5  # of a region; of a job
TOTAL = GPUS * len(REGIONS)
CAPACITY_RPS = TOTAL / SERVICE_S
LOADS = (0.7, 0.9, 1.1)
BURSTS = (2 * TOTAL, 5 * TOTAL)
HOME_SHARE = 0.8
"""Of the fixed table: 80 % at home, the rest to the two others."""


@dataclass(frozen=True)
class Case:
    """One way to run the fleet.

    Attributes:
        name: for people.
        tiers: 2: edges and ingresses; 1: edges alone.
        retry: of the fleet file.
        controlled: whether the control loop makes the table, instead of the fixed one.
    """

    name: str
    tiers: int
    retry: dict[str, Any] = field(default_factory=dict)
    controlled: bool = False


def _immediate(attempts: int = 9) -> dict[str, Any]:
    return {"attempts": attempts, "base_interval_s": 0.001, "max_interval_s": 0.001}


def _backoff(attempts: int = 9) -> dict[str, Any]:
    return {"attempts": attempts, "base_interval_s": 0.05, "max_interval_s": 1.0}


def _delayed(retry: dict[str, Any], share: float, max_s: float) -> dict[str, Any]:
    return {**retry, "delay": {"share": share, "max_s": max_s, "burst_share": share}}


PATIENT = {"attempts": 20, "base_interval_s": 0.1, "max_interval_s": 1.0}
"""Of docs/examples/small-fleet.yaml."""

CASES = (
    Case("no retry", 1, {"attempts": 1}),
    Case("no retry", 2, {"attempts": 1}),
    Case("8 immediate retries", 1, _immediate()),
    Case("8 immediate retries", 2, _immediate()),
    Case("8 immediate retries, delay of 0 to 1 s for all", 2, _delayed(_immediate(), 1.0, 1.0)),
    Case("8 retries with backoff", 1, _backoff()),
    Case("8 retries with backoff", 2, _backoff()),
    Case("8 retries with backoff, delay of 0 to 0.5 s for 20 %", 1, _delayed(_backoff(), 0.2, 0.5)),
    Case("8 retries with backoff, delay of 0 to 0.5 s for 20 %", 2, _delayed(_backoff(), 0.2, 0.5)),
    Case("19 retries with backoff, control loop", 2, PATIENT, controlled=True),
)


def fleet_of(case: Case) -> Fleet:
    """Its fleet: three regions, 20 and 40 ms apart."""
    return validated(
        Fleet,
        {
            "regions": {name: {"gpus": GPUS} for name in REGIONS},
            "latency_ms": {"a": {"b": 20, "c": 40}, "b": {"c": 20}},
            "service_time_s": SERVICE_S,
            "rings_ms": [30, 60],
            "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}],
            "target_load": 0.75,
            "smoothing_s": 10,
            "retry": case.retry,
            "data_plane": {"limits": {"edge_threads": 1}},
        },
    )


def fixed_shares() -> dict[str, dict[str, float]]:
    """Rows of the fixed table."""
    other = (1 - HOME_SHARE) / (len(REGIONS) - 1)
    return {source: {to: HOME_SHARE if to == source else other for to in REGIONS} for source in REGIONS}
