"""What the compiled loop works on: arrays of records, made once and changed in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Records = NDArray[Any]
"""One of the record types below; numpy's types cannot say which."""

SUBDIVISIONS = 256
"""Bins of a histogram between a time and its double: a quantile is within 0.2 %."""
SMALLEST_EXPONENT, LARGEST_EXPONENT = -13, 26
"""Bins go from 2^-14 s (61 microseconds, below it is none) to 2^26 s (two years)."""
BINS = (LARGEST_EXPONENT - SMALLEST_EXPONENT + 1) * SUBDIVISIONS + 1

UP, REFUSES, VANISHED = 0, 1, 2
"""States of a region: connections are refused, or not answered at all, until a time limit."""

scalars_type = np.dtype(
    [
        ("now", "f8"),
        ("begun", "i8"),
        ("buckets_per_s", "f8"),  # of the calendar
        ("bucket", "i8"),  # events up to this one are in the heap
        ("near", "i8"),  # events in the heap
        ("far", "i8"),  # events in the calendar
        ("free_node", "i8"),  # of the calendar, -1: none
        ("free_job", "i8"),
        ("jobs", "i8"),  # places of jobs in use
        ("events", "i8"),
        ("attempts", "i8"),
        ("base_s", "f8"),
        ("most_s", "f8"),
        ("delay_s", "f8"),
        ("connect_s", "f8"),
        ("queue", "i8"),  # jobs that may wait at a dispatcher; -1: by its GPU servers
        ("longest_s", "f8"),  # that a job waits at a dispatcher; 0: as long as it takes
        ("places_per_gpu", "f8"),
        ("spill_places_per_gpu", "f8"),  # for jobs that another region has refused
        ("exponential", "i8"),  # service times; 0: one of `atoms`
        ("service_s", "f8"),  # mean
    ]
)
# A dispatcher with its GPU servers.
host_type = np.dtype(
    [
        ("region", "i4"),
        ("free", "i4"),
        ("gpus", "i4"),  # that are up
        ("leaving", "i4"),  # computations on GPUs that go when they end
        ("doomed", "i4"),  # computations on GPUs that have died since, whose jobs are lost already
        ("epoch", "i4"),  # counts deaths: ends of an earlier one are void
        ("waiting", "i4"),
        ("first", "i4"),  # job that waits longest, -1: none
        ("last", "i4"),
    ]
)
region_type = np.dtype(
    [
        ("first_host", "i4"),
        ("hosts", "i4"),
        ("state", "i4"),
        ("busy", "i8"),
        ("gpus", "i8"),  # that are up
        ("busy_s", "f8"),  # integral of busy up to `busy_at`
        ("busy_at", "f8"),
        ("slowness", "f8"),  # factor of service times
        ("ended", "i8"),
        ("lost", "i8"),  # jobs that died with their GPU
        ("delay_share", "f8"),
        # Of its users:
        ("arrived", "i8"),
        ("failed", "i8"),
        ("delayed", "i8"),
        ("tried", "i8"),  # attempts
        ("retried", "i8"),  # attempts after the first
        ("stranded", "i8"),  # attempts for which no region was alive
    ]
)
stream_type = np.dtype(
    [
        ("source", "i4"),
        ("trace", "i4"),  # 1: times are given; 0: rates
        ("position", "i8"),  # of the next time, or of the current rate
        ("end", "i8"),
        ("number", "i8"),  # jobs so far
        ("next", "f8"),
        ("arrival_key", "u8"),
        ("job_key", "u8"),
    ]
)
job_type = np.dtype(
    [
        ("arrived", "f8"),
        ("key", "u8"),
        ("source", "i4"),
        ("attempt", "i4"),
        ("host", "i4"),
        ("next", "i4"),  # free, or waiting behind it
        ("until", "f8"),  # it waits in line, at most; 0: it does not
    ]
)
node_type = np.dtype([("time", "f8"), ("payload", "i8"), ("next", "i4")])
event_type = np.dtype([("time", "f8"), ("payload", "i8")])
GROUPS = 8
"""Groups of regions that the attempts of a job go to in turn: the table's row, and rings."""
place_type = np.dtype([("region", "i4"), ("share", "f8"), ("due", "f8")])


class State(NamedTuple):
    """All of it. `n` regions, `h` hosts, `m` streams of arrivals.

    Attributes:
        scalars: (1,)
        hosts: (h,); those of a region are neighbours.
        regions: (n,)
        streams: (m,)
        order: (m,), streams as a heap by their next arrival.
        jobs: places for jobs that are under way but not computed.
        nodes, heads: the calendar: events in linked lists, by bucket.
        near: heap of the events that come next.
        rows: (GROUPS, n, n), where attempts go, by source: by the table, then group by group. Each is a
            heap by `due`.
        row_lengths: (GROUPS, n)
        one_way_s: (n, n)
        tried_flow, served_flow: (n, n), attempts and accepted jobs from source to destination.
        attempts_taken: (n, attempts + 1), jobs by source that had an end after so many.
        waits, latencies: (n, BINS), histograms by source.
        times: of traces, and starts of rates, in s.
        rates: per second, beside `times`.
        atoms: service times in s, equally likely.
    """

    scalars: Records
    hosts: Records
    regions: Records
    streams: Records
    order: NDArray[np.int64]
    jobs: Records
    nodes: Records
    heads: NDArray[np.int32]
    near: Records
    rows: Records
    row_lengths: NDArray[np.int64]
    one_way_s: NDArray[np.float64]
    tried_flow: NDArray[np.int64]
    served_flow: NDArray[np.int64]
    attempts_taken: NDArray[np.int64]
    waits: NDArray[np.int64]
    latencies: NDArray[np.int64]
    times: NDArray[np.float64]
    rates: NDArray[np.float64]
    atoms: NDArray[np.float64]


def with_more_events(state: State) -> State:
    """The same with twice the places for events."""
    old = len(state.nodes)
    nodes = np.zeros(2 * old, node_type)
    nodes[:old] = state.nodes
    near = np.zeros(2 * old, event_type)
    near[:old] = state.near
    chain(nodes["next"], old, int(state.scalars["free_node"][0]))
    state.scalars["free_node"] = old
    return state._replace(nodes=nodes, near=near)


def with_more_jobs(state: State) -> State:
    """The same with twice the places for jobs."""
    old = len(state.jobs)
    jobs = np.zeros(2 * old, job_type)
    jobs[:old] = state.jobs
    chain(jobs["next"], old, int(state.scalars["free_job"][0]))
    state.scalars["free_job"] = old
    return state._replace(jobs=jobs)


def chain(links: NDArray[np.int32], start: int, then: int) -> None:
    """Link the places from `start` on, and the last one to `then`."""
    links[start:] = np.arange(start + 1, len(links) + 1)
    links[-1] = then


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
