"""Counters of a run at one moment; the difference of two tells of the time between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .state import BINS, SMALLEST_EXPONENT, SUBDIVISIONS, State

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Snapshot:
    """Since the start. Arrays are by region: sources, destinations, or (source, destination).

    Attributes:
        time_s: when.
        arrived, failed, delayed, tried, retried: of a source's jobs. `failed`: no attempt found a GPU.
        ended, lost: of a destination's computations: done, and ended by the death of their GPU.
        busy, gpus: of a destination, now.
        busy_s: time of all its GPUs together that was computed in.
        gpus_s: the same that was there.
        tried_flow, served_flow: attempts, and jobs that found a GPU.
        attempts_taken: (source, attempts + 1), jobs that had an end by attempts.
        waits, latencies: (source, BINS), histograms.
        under_way: jobs that were neither computed nor failed.
        events: of the loop.
        delay_share: of a source's jobs, now.
    """

    time_s: float
    arrived: Counts
    failed: Counts
    delayed: Counts
    tried: Counts
    retried: Counts
    ended: Counts
    lost: Counts
    busy: Counts
    gpus: Counts
    busy_s: NDArray[np.float64]
    tried_flow: Counts
    served_flow: Counts
    attempts_taken: Counts
    waits: Counts
    latencies: Counts
    under_way: int
    events: int
    delay_share: NDArray[np.float64]


def take(state: State, now: float, *, histograms: bool = True) -> Snapshot:
    """The counters of a state, at a moment that the loop has reached; without histograms these are empty."""
    none = np.zeros((0, BINS), np.int64)
    regions = state.regions
    counts = {
        name: regions[name].astype(np.int64)
        for name in ("arrived", "failed", "delayed", "tried", "retried", "ended", "lost", "busy", "gpus")
    }
    return Snapshot(
        time_s=now,
        busy_s=regions["busy_s"] + regions["busy"] * (now - regions["busy_at"]),
        tried_flow=state.tried_flow.copy(),
        served_flow=state.served_flow.copy(),
        attempts_taken=state.attempts_taken.copy(),
        waits=state.waits.copy() if histograms else none,
        latencies=state.latencies.copy() if histograms else none,
        under_way=int(state.scalars["jobs"][0]),
        events=int(state.scalars["events"][0]),
        delay_share=regions["delay_share"].copy(),
        **counts,
    )


_EDGES_S = np.concatenate(
    [
        [0.0],
        2.0 ** (SMALLEST_EXPONENT - 1 + np.arange(BINS) // SUBDIVISIONS)
        * (1 + (np.arange(BINS) % SUBDIVISIONS) / SUBDIVISIONS),
    ]
)
"""(BINS + 1,), in s: bin i is from edge i to edge i + 1."""


def quantile(histogram: Counts, share: float) -> float | None:
    """The time that a share of the jobs was below, in s, to 0.2 %; None without jobs.

    Args:
        histogram: (BINS,)
        share: 0 to 1.
    """
    total = int(histogram.sum())
    if total == 0:
        return None
    rank = share * total
    below = np.cumsum(histogram)
    at = int(np.searchsorted(below, rank))
    if at == 0:
        return 0.0  # too short to count
    within = (rank - below[at - 1]) / histogram[at]
    return float(_EDGES_S[at] + within * (_EDGES_S[at + 1] - _EDGES_S[at]))


def mean(histogram: Counts) -> float | None:
    """Mean time in s, to 0.2 %; None without jobs."""
    total = int(histogram.sum())
    middle = (_EDGES_S[:-1] + _EDGES_S[1:]) / 2
    middle[0] = 0.0
    return float(middle @ histogram) / total if total else None
