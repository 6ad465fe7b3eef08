"""The queue of events: a calendar of buckets for those to come, and a heap for those of the current bucket.

Buckets are so short that each holds about one event, so that adding and taking one costs the same however many there
are (Brown: "Calendar queues", CACM 1988). Events of one moment, which all fall into one bucket, are sorted by the
heap: that costs log n at worst, where a plain calendar would cost n.

Events are sorted by time, then by payload, never by when they were added.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled
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
        if child + 1 < size and _before(s, child + 1, s.near[child].time, s.near[child].payload):
            child += 1
        if not _before(s, child, time, last):
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
        if _before(s, parent, time, payload):
            break
        s.near[at].time = s.near[parent].time
        s.near[at].payload = s.near[parent].payload
        at = parent
    s.near[at].time = time
    s.near[at].payload = payload


@compiled
def _before(s: State, at: int, time: float, payload: int) -> bool:
    other = s.near[at].time
    return other < time or (other == time and s.near[at].payload < payload)
