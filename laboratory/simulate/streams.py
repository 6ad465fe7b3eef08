"""Arrivals as they come: at given times, or of a Poisson process with a rate that is constant piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .compiled import cached, compiled, compiled_apart, digest
from .draws import bits, exponential
from .state import State

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
