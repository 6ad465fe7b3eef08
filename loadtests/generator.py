"""What makes a run void: a generator that could not keep up tells nothing about the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from routing.schema import Count, Number, Positive, Share, Strict

from .tally import Tally


class Limits(Strict):
    """What a generator may miss before a run is void.

    Attributes:
        late_above_jobs: a request that leaves later than this after its time, times the fleet's `service_time_s`, is
            late. A herd of a thousand does not leave in one moment, and need not where a job takes seconds.
        late_share: of the requests, that may be.
        dropped_share: of the arrivals, that may be left out because too many were in flight.
        in_flight: of one worker, above which it drops.
        cpu_percent: of one core, that a worker may use: above it, it stands in its own way.
        timeout_s: after which a request has failed. None: as long as the fleet file lets an edge try.
        foreign_share: of the answers, that may not be stillmotion's.
    """

    late_above_jobs: Positive = 0.2
    late_share: Share = 0.05
    dropped_share: Share = 0.0
    in_flight: Annotated[Count, Field(ge=1)] = 5000
    cpu_percent: Annotated[Number, Field(gt=0, le=100)] = 90.0
    timeout_s: Positive | None = None
    foreign_share: Share = 0.01


NO_CONNECTION, FOREIGN = "no connection", "not stillmotion"
"""Problems of an outcome that say something about the generator's side, or about where it was sent."""


def complaints(limits: Limits, tally: Tally, planned: int) -> Iterator[str]:
    """Why a run is void, if it is.

    Args:
        limits: of the scenario.
        tally: of all workers.
        planned: arrivals that were to be.
    """
    if tally.arrivals < planned:
        yield f"only {tally.arrivals} of {planned} arrivals came to be: the run was cut short, or a worker was lost"
    unfinished = tally.arrivals - tally.dropped - tally.requests
    if unfinished > 0 and tally.arrivals >= planned:
        yield f"{unfinished} requests were not waited for"
    if not tally.requests:
        yield "no request has an outcome"
        return
    yield from overload(limits, tally)
    if tally.problems[FOREIGN] > limits.foreign_share * tally.requests:
        yield f"{tally.problems[FOREIGN]} of {tally.requests} answers are not stillmotion's"
    for source, failed, count in _unreached(tally):
        yield f"the edge of {source} could not be reached by {failed} of its {count} requests"


def overload(limits: Limits, tally: Tally) -> Iterator[str]:
    """In what the generator did not keep up, if in anything: another try may, when the machine has less to do."""
    share = tally.late / max(1, tally.requests)
    if share > limits.late_share:
        late_above_s = limits.late_above_jobs * tally.service_time_s
        text = f"{tally.late} of {tally.requests} requests left more than {late_above_s:g} s late"
        most = f"the latest by {tally.most_late_s:.2f} s"
        yield f"{text} ({share:.1%}, {most}; generator.late_share is {limits.late_share:.1%}): use more workers"
    share = tally.dropped / max(1, tally.arrivals)
    if share > limits.dropped_share:
        text = f"{tally.dropped} of {tally.arrivals} arrivals were dropped, with {limits.in_flight} in flight"
        yield f"{text} ({share:.1%}; generator.dropped_share is {limits.dropped_share:.1%})"
    if tally.cpu_percent > limits.cpu_percent:
        text = f"a worker took {tally.cpu_percent:.0f} % of a core for five seconds"
        yield f"{text} (generator.cpu_percent is {limits.cpu_percent:.0f}): use more workers"


def _unreached(tally: Tally) -> Iterator[tuple[str, int, int]]:
    by_source: dict[str, list[int]] = {}
    for name, count in tally.statuses.items():
        source, _, status = name.rpartition(" ")
        counts = by_source.setdefault(source, [0, 0])
        counts[0] += count if status == UNREACHED else 0
        counts[1] += count
    for source, (failed, count) in sorted(by_source.items()):
        if failed > count / 2:
            yield source, failed, count


UNREACHED = "-1"
"""Status of a request whose connection was not made."""
