"""What comes next: the queue of events, arrivals, and the region that an attempt goes to.

The queue is a calendar of buckets for events to come, and a heap for those of the current bucket. Buckets are so short
that each holds about one event, so that adding and taking one costs the same however many there are (Brown: "Calendar
queues", CACM 1988). Events of one moment, which all fall into one bucket, are sorted by the heap: that costs log n at
worst, where a plain calendar would cost n. Events are sorted by time, then by payload, never by when they were added.

Arrivals come at given times, or of a Poisson process with a rate that is constant piece by piece.

An edge chooses as Envoy does: regions in weighted rotation (earliest deadline first, whose shares are exact in any
window). The first attempts of a job go by the table, the others to the regions that it keeps for them
(`routing.retries.attempt_groups`; Envoy's retry priority `previous_priorities`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .compiled import bits, cached, compiled, compiled_apart, digest, exponential, uniform
from .state import State

NOTHING = np.inf


@compiled
def add(s: State, time: float, payload: int) -> None:
    """Add an event."""
    scalars = s.scalars[0]
    bucket = np.int64(time * scalars.buckets_per_s)
    if bucket <= scalars.bucket:
        _heap_add(s, time, payload)
        return
    node = scalars.free_node
    scalars.free_node = s.nodes[node].next
    place = bucket & (len(s.heads) - 1)
    s.nodes[node].time = time
    s.nodes[node].payload = payload
    s.nodes[node].next = s.heads[place]
    s.heads[place] = node
    scalars.far += 1


@compiled
def first_time(s: State, limit: float) -> float:
    """Time of the next event, or `NOTHING` where it is after `limit` (which must be finite)."""
    scalars = s.scalars[0]
    if scalars.near == 0:
        last = np.int64(limit * scalars.buckets_per_s)
        if scalars.far == 0:
            scalars.bucket = max(scalars.bucket, last)
            return NOTHING
        while scalars.near == 0 and scalars.bucket < last:
            scalars.bucket += 1
            _open(s, scalars.bucket)
        if scalars.near == 0:
            return NOTHING
    return s.near[0].time


@compiled
def take(s: State) -> int:
    """Take the next event out and return its payload; `first_time` has said that there is one."""
    scalars = s.scalars[0]
    payload = s.near[0].payload
    scalars.near -= 1
    size = scalars.near
    time, last = s.near[size].time, s.near[size].payload
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _is_earlier(s, child + 1, s.near[child].time, s.near[child].payload):
            child += 1
        if not _is_earlier(s, child, time, last):
            break
        s.near[at].time = s.near[child].time
        s.near[at].payload = s.near[child].payload
        at = child
    s.near[at].time = time
    s.near[at].payload = last
    return payload


@compiled
def _open(s: State, bucket: int) -> None:
    """Move the events of a bucket to the heap; those of a later round of the calendar stay."""
    scalars = s.scalars[0]
    place = bucket & (len(s.heads) - 1)
    node = s.heads[place]
    if node < 0:
        return
    kept = -1
    while node >= 0:
        after = s.nodes[node].next
        if np.int64(s.nodes[node].time * scalars.buckets_per_s) <= bucket:
            _heap_add(s, s.nodes[node].time, s.nodes[node].payload)
            s.nodes[node].next = scalars.free_node
            scalars.free_node = node
            scalars.far -= 1
        else:
            s.nodes[node].next = kept
            kept = node
        node = after
    s.heads[place] = kept


@compiled
def _heap_add(s: State, time: float, payload: int) -> None:
    scalars = s.scalars[0]
    at = scalars.near
    scalars.near += 1
    while at > 0:
        parent = (at - 1) >> 1
        if _is_earlier(s, parent, time, payload):
            break
        s.near[at].time = s.near[parent].time
        s.near[at].payload = s.near[parent].payload
        at = parent
    s.near[at].time = time
    s.near[at].payload = payload


@compiled
def _is_earlier(s: State, at: int, time: float, payload: int) -> bool:
    other = s.near[at].time
    return other < time or (other == time and s.near[at].payload < payload)


NEVER = np.inf


@compiled
def draw_next(s: State, stream: int) -> None:
    """Set the next arrival of a stream.

    A Poisson process with rate r(t) has its next event where the integral of r from the last one reaches an
    exponential draw of mean 1: exact, also over jumps of the rate.
    """
    one = s.streams[stream]
    if one.trace == 1:
        one.next = s.times[one.position] if one.position < one.end else NEVER
        one.position += 1
        return
    left = exponential(bits(one.arrival_key, one.number))
    time = one.next
    while one.position < one.end:
        rate, until = s.rates[one.position], s.times[one.position + 1]
        if rate * (until - time) >= left:
            one.next = time + left / rate
            return
        left -= rate * (until - time)
        time = until
        one.position += 1
    one.next = NEVER


@compiled
def first_settled(s: State) -> None:
    """Bring the heap of streams in order, after the next arrival of its first one has changed."""
    at, size = 0, len(s.order)
    stream = s.order[0]
    time = s.streams[stream].next
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(s, s.order[child + 1], s.order[child]):
            child += 1
        other = s.streams[s.order[child]].next
        if time < other or (time == other and stream < s.order[child]):
            break
        s.order[at] = s.order[child]
        at = child
    s.order[at] = stream


@compiled
def _before(s: State, one: int, other: int) -> bool:
    a, b = s.streams[one].next, s.streams[other].next
    return a < b or (a == b and one < other)


@compiled
def begin(s: State) -> None:
    """Set the first arrival of each stream, and their order."""
    for stream in range(len(s.order)):
        draw_next(s, stream)
        at = stream
        while at > 0 and _before(s, stream, s.order[at - 1]):
            s.order[at] = s.order[at - 1]
            at -= 1
        s.order[at] = stream


@compiled_apart
def _next_arrival(s: State, until: float) -> int:
    scalars = s.scalars[0]
    if scalars.begun == 0:
        scalars.begun = 1
        begin(s)
    one = s.streams[s.order[0]]
    if one.next == NEVER or one.next > until:
        return -1
    scalars.now = one.next
    source = one.source
    one.number += 1
    draw_next(s, s.order[0])
    first_settled(s)
    return source


def _of_digest(files: int) -> Callable[[State, float], int]:
    def run(s: State, until: float) -> int:
        return _next_arrival(s, until) + 0 * files

    return run


next_arrival = cached(_of_digest(digest()))
"""Go on to the next arrival, of which `now` is the time then; its source, or -1 where there is none until a time."""


NOBODY = -1
_CHOICES = 4096  # draws for choices start here among those of a job


@compiled
def choose(s: State, source: int, key: np.uint64, attempt: int) -> int:
    """The host that an attempt goes to, or `NOBODY` where no region is alive.

    Args:
        s: state.
        source: of the job.
        key: of the job's draws.
        attempt: 1, 2, ...
    """
    groups = 0
    while groups < s.row_lengths.shape[0] and s.row_lengths[groups, source] > 0:
        groups += 1
    if groups == 0:
        return NOBODY
    group = (attempt - 1) % groups
    return _host(s, _next_region(s, group, source), bits(key, _CHOICES + 2 * attempt + 1))


@compiled
def _next_region(s: State, group: int, source: int) -> int:
    """Take the region that is due first, which is due again after 1 / share."""
    row = s.rows[group, source]
    region, share, due = row[0].region, row[0].share, row[0].due + 1.0 / row[0].share
    size = s.row_lengths[group, source]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and row[child + 1].due < row[child].due:
            child += 1
        if due <= row[child].due:
            break
        row[at].region = row[child].region
        row[at].share = row[child].share
        row[at].due = row[child].due
        at = child
    row[at].region = region
    row[at].share = share
    row[at].due = due
    return region


@compiled
def _host(s: State, region: int, b: np.uint64) -> int:
    """One of the region's dispatchers."""
    here = s.regions[region]
    return here.first_host if here.hosts <= 1 else here.first_host + int(uniform(b) * here.hosts)
