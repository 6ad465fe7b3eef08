"""The event loop: what happens to a job from its arrival to its answer.

    arrival -> (delay) -> send: the edge chooses a host -> (way there) -> arrive: a GPU is free, it waits, or is refused
        free: computation -> end
        waits: a GPU is free, or the longest wait is over: refused
        refused: (way back) -> backoff -> send again, until the attempts are used up: failed

Ways within a region take no time, and cost no event then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .compiled import bits, borrowed, cached, compiled, compiled_apart, digest, exponential, uniform
from .events import NOBODY, add, begin, choose, draw_next, first_settled, first_time, take
from .state import BINS, SMALLEST_EXPONENT, SUBDIVISIONS, VANISHED, State

DONE, MORE_EVENTS, MORE_JOBS = 0, 1, 2
"""Why the loop has returned: the time is reached, or an array is full."""

# Kinds of events, in the order in which they happen at one moment: a GPU is free before someone asks for it.
_END, _ARRIVE, _SEND, _GIVE_UP = 0, 1, 2, 3
_KIND, _EPOCH = 58, 42  # where they begin in a payload; below: a host, or a job
_LOW_16, _LOW_28 = 2**16 - 1, 2**28 - 1
MOST_SOURCES, MOST_HOSTS = 2**14, _LOW_28 + 1
_NO_JOB, _NEW = -1, -2  # none; one that has no place yet
Jobs = tuple[int, int, float, np.uint64, int, int, int]
"""Stage, source, moment of arrival, key, attempts, place of the job or one of the two above, host."""
# Draws of a job, by index.
_SERVICE, _DELAYED, _DELAY, _BACKOFF = 1, 2, 3, 64


def _run(held: State, until: float) -> int:
    """Go on until a time, that moment included.

    Each turn takes the next arrival or event, and a job through as many stages as take no time.

    Returns:
        `DONE`; or which places are used up: make more (`with_more_events`, `with_more_jobs`), and call again.
    """
    s = _borrowed(held)
    scalars = s.scalars[0]
    if scalars.begun == 0:
        scalars.begun = 1
        begin(s)
    while True:
        if scalars.near + scalars.far + 8 > len(s.nodes):
            return MORE_EVENTS
        if scalars.jobs + 4 > len(s.jobs):
            return MORE_JOBS
        arrival = s.streams[s.order[0]].next
        event = first_time(s, min(arrival, until))
        time = min(event, arrival)
        if time > until:
            scalars.now = until
            return DONE
        scalars.now = time
        scalars.events += 1
        # At one moment, events come before arrivals: a GPU is free before someone asks for it.
        stage, source, arrived, key, attempt, job, host = _of_event(s) if event <= arrival else _of_arrival(s)
        if job == _NO_JOB:
            continue
        if stage == _GIVE_UP:
            _refuse(s, time, source, arrived, key, attempt, job, host)
            continue
        if stage == _SEND:
            attempt += 1
            host = choose(s, source, key, attempt)
            if _is_on_its_way(s, time, source, arrived, key, attempt, job, host):
                continue
        if stage == _END:
            _leave(s, job)  # waited here for a GPU, which is free now
        elif not _finds_gpu(s, time, source, arrived, key, attempt, job, host):
            continue
        _begin(s, time, source, arrived, key, attempt, host)


_compiled_run = compiled_apart(_run)


@compiled
def _borrowed(s: State) -> State:
    return State(
        borrowed(s.scalars),
        borrowed(s.hosts),
        borrowed(s.regions),
        borrowed(s.streams),
        borrowed(s.order),
        borrowed(s.jobs),
        borrowed(s.nodes),
        borrowed(s.heads),
        borrowed(s.near),
        borrowed(s.rows),
        borrowed(s.row_lengths),
        borrowed(s.one_way_s),
        borrowed(s.tried_flow),
        borrowed(s.served_flow),
        borrowed(s.attempts_taken),
        borrowed(s.waits),
        borrowed(s.latencies),
        borrowed(s.times),
        borrowed(s.rates),
        borrowed(s.atoms),
    )


def _of_digest(files: int) -> Callable[[State, float], int]:
    def run(s: State, until: float) -> int:
        return _compiled_run(s, until) + 0 * files

    return run


run = cached(_of_digest(digest()))


@compiled
def _of_event(s: State) -> Jobs:
    """The next event, and the job that it is of."""
    time, payload = s.scalars[0].now, take(s)
    stage = payload >> _KIND
    job = _ended(s, time, payload) if stage == _END else payload & _LOW_28
    if stage == _GIVE_UP and not _gives_up(s, time, job):
        job = _NO_JOB
    one = s.jobs[max(job, 0)]
    return stage, one.source, one.arrived, one.key, one.attempt, job, one.host


@compiled
def _of_arrival(s: State) -> Jobs:
    """The job that arrives. Where it is delayed there is none yet."""
    time, stream = s.scalars[0].now, s.order[0]
    one = s.streams[stream]
    source, key = one.source, bits(one.job_key, one.number)
    one.number += 1
    draw_next(s, stream)
    first_settled(s)
    s.regions[source].arrived += 1
    job = _NO_JOB if _is_delayed(s, time, source, key) else _NEW
    return _SEND, source, time, key, 0, job, NOBODY


@compiled
def _is_delayed(s: State, time: float, source: int, key: np.uint64) -> bool:
    """Marginal delay: a share of the jobs waits before its first attempt."""
    here = s.regions[source]
    if here.delay_share <= 0 or uniform(bits(key, _DELAYED)) >= here.delay_share:
        return False
    here.delayed += 1
    job = _place(s, source, time, key, 0)
    add(s, time + uniform(bits(key, _DELAY)) * s.scalars[0].delay_s, (_SEND << _KIND) | job)
    return True


@compiled
def _place(s: State, source: int, arrived: float, key: np.uint64, attempt: int) -> int:
    """A place for a job that is not computed at once."""
    scalars = s.scalars[0]
    job = scalars.free_job
    one = s.jobs[job]
    scalars.free_job = one.next
    scalars.jobs += 1
    one.source, one.arrived, one.key, one.attempt = source, arrived, key, attempt
    return job


@compiled
def _leave(s: State, job: int) -> None:
    scalars = s.scalars[0]
    s.jobs[job].until = 0.0
    s.jobs[job].next = scalars.free_job
    scalars.free_job = job
    scalars.jobs -= 1


@compiled
def _is_on_its_way(
    s: State, time: float, source: int, arrived: float, key: np.uint64, attempt: int, job: int, host: int
) -> bool:
    """An attempt leaves the edge; whether it takes time to get where it goes."""
    here = s.regions[source]
    here.tried += 1
    if attempt > 1:
        here.retried += 1
    if host == NOBODY:
        here.stranded += 1
        return False
    to = s.hosts[host].region
    s.tried_flow[source, to] += 1
    way = s.one_way_s[source, to]
    if way <= 0:
        return False
    if job == _NEW:
        job = _place(s, source, arrived, key, attempt)
    s.jobs[job].attempt = attempt
    s.jobs[job].host = host
    add(s, time + way, (_ARRIVE << _KIND) | job)
    return True


@compiled
def _wait(s: State, time: float, host: int, job: int) -> None:
    """A job gets in line, behind all that are there."""
    at = s.hosts[host]
    if s.scalars[0].longest_s > 0:
        s.jobs[job].until = time + s.scalars[0].longest_s
        add(s, s.jobs[job].until, (_GIVE_UP << _KIND) | job)
    s.jobs[job].next = _NO_JOB
    if at.waiting == 0:
        at.first = job
    else:
        s.jobs[at.last].next = job
    at.last = job
    at.waiting += 1


@compiled
def _finds_gpu(
    s: State, time: float, source: int, arrived: float, key: np.uint64, attempt: int, job: int, host: int
) -> bool:
    """An attempt is at its host: it takes a free GPU, waits where there is a queue, or is refused."""
    if host != NOBODY:
        at = s.hosts[host]
        if at.free > 0:
            at.free -= 1
            if job != _NEW:
                _leave(s, job)
            return True
        places = s.scalars[0].queue
        if places < 0:
            spills = attempt > 1 and at.region != source
            a_gpu = s.scalars[0].spill_places_per_gpu if spills else s.scalars[0].places_per_gpu
            places = int(at.gpus * a_gpu + 0.5)
        if at.waiting < places and at.gpus > 0:
            if job == _NEW:
                job = _place(s, source, arrived, key, attempt)
            s.jobs[job].attempt, s.jobs[job].host = attempt, host
            _wait(s, time, host, job)
            return False
    _refuse(s, time, source, arrived, key, attempt, job, host)
    return False


@compiled
def _gives_up(s: State, time: float, job: int) -> bool:
    """Whether a job waits still when its longest wait is over; it leaves the line then."""
    one = s.jobs[job]
    if one.until != time:
        return False
    one.until = 0.0
    at = s.hosts[one.host]
    before, here = _NO_JOB, at.first
    while here != job:  # those that came in the same moment may be before it
        before, here = here, s.jobs[here].next
    if before == _NO_JOB:
        at.first = one.next
    else:
        s.jobs[before].next = one.next
    if at.last == job:
        at.last = before
    at.waiting -= 1
    return True


@compiled
def _refuse(
    s: State, time: float, source: int, arrived: float, key: np.uint64, attempt: int, job: int, host: int
) -> None:
    """An attempt is over without a GPU: the edge tries again after a pause, or gives the job up."""
    heard = _heard(s, time, source, host)
    if attempt >= s.scalars[0].attempts:
        s.regions[source].failed += 1
        s.attempts_taken[source, attempt] += 1
        if job != _NEW:
            _leave(s, job)
        return
    if job == _NEW:
        job = _place(s, source, arrived, key, attempt)
    s.jobs[job].attempt = attempt
    longest = min(s.scalars[0].base_s * 2.0 ** (attempt - 1), s.scalars[0].most_s)
    add(s, heard + uniform(bits(key, _BACKOFF + attempt)) * longest, (_SEND << _KIND) | job)


@compiled
def _heard(s: State, time: float, source: int, host: int) -> float:
    """When the edge knows that an attempt was refused."""
    if host == NOBODY:
        return time
    scalars = s.scalars[0]
    to = s.hosts[host].region
    way = s.one_way_s[source, to]
    # What has vanished does not answer; the edge gives up `connect_s` after it has sent.
    return time + (max(way, scalars.connect_s - way) if s.regions[to].state == VANISHED else way)


@compiled
def _begin(s: State, time: float, source: int, arrived: float, key: np.uint64, attempt: int, host: int) -> None:
    """A GPU begins to compute a job."""
    scalars = s.scalars[0]
    to = s.hosts[host].region
    there = s.regions[to]
    b = bits(key, _SERVICE)
    if scalars.exponential == 1:
        service = exponential(b) * scalars.service_s
    else:
        service = s.atoms[int(uniform(b) * len(s.atoms))]
    service *= there.slowness
    _count_busy(there, time)
    there.busy += 1
    s.served_flow[source, to] += 1
    s.attempts_taken[source, attempt] += 1
    wait = time - arrived + s.one_way_s[source, to]
    s.waits[source, _bin(wait)] += 1
    s.latencies[source, _bin(wait + service)] += 1
    epoch = s.hosts[host].epoch & _LOW_16
    add(s, time + service, (epoch << _EPOCH) | host)


@compiled
def _ended(s: State, time: float, payload: int) -> int:
    """A computation ends: the job that takes its GPU, or `_NO_JOB`, and the GPU is free."""
    at = s.hosts[payload & _LOW_28]
    if (payload >> _EPOCH) & _LOW_16 != at.epoch & _LOW_16:
        return _NO_JOB
    there = s.regions[at.region]
    if at.doomed > 0:
        # Which of the computations died shows here: each that is under way is as likely.
        under_way = at.gpus - at.free + at.doomed + at.leaving
        if uniform(bits(np.uint64(payload), there.ended)) * under_way < at.doomed:
            at.doomed -= 1
            return _NO_JOB
    _count_busy(there, time)
    there.busy -= 1
    there.ended += 1
    if at.leaving > 0:
        # The same for those whose GPU goes: nobody takes it.
        under_way = at.gpus - at.free + at.leaving
        if uniform(bits(np.uint64(payload), there.ended)) * under_way < at.leaving:
            at.leaving -= 1
            return _NO_JOB
    if at.waiting == 0:
        at.free += 1
        return _NO_JOB
    job = at.first
    at.first = s.jobs[job].next
    at.waiting -= 1
    return job


@compiled
def _count_busy(region: Any, time: float) -> None:
    region.busy_s += region.busy * (time - region.busy_at)
    region.busy_at = time


@compiled
def _bin(time: float) -> int:
    """Bin of a histogram: `SUBDIVISIONS` to each doubling; 0 for what is too short to count."""
    mantissa, exponent = math.frexp(time)
    if exponent < SMALLEST_EXPONENT or time <= 0:
        return 0
    at = 1 + (exponent - SMALLEST_EXPONENT) * SUBDIVISIONS + int((mantissa - 0.5) * 2 * SUBDIVISIONS)
    return min(at, BINS - 1)
