"""GPU servers: what one of them says on `/metrics` (the names are of `serving/metrics.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .growth import Counters
from .oddities import Kind, Oddity
from .reading import Page
from .settings import LoadMetric
from .targets import Machine

READY = "stillmotion_ready"
LOAD = "stillmotion_load"
BUSY = "stillmotion_busy_seconds_total"
REQUESTS = "stillmotion_requests_total"
COMPUTED = frozenset({"ok", "failed", "deadline", "disconnected"})
"""Outcomes of requests that had the GPU. Refused ones cost nothing."""

NEARLY_FULL = 1.2
"""Load is a time over a time, and answers take some milliseconds more or less to come: up to here it is 1."""


def series(metrics: Mapping[str, LoadMetric]) -> frozenset[str]:
    """What is wanted of a GPU server's page."""
    return frozenset({READY, LOAD, BUSY, REQUESTS, *(metric.series for metric in metrics.values())})


@dataclass(frozen=True)
class Work:
    """What a server did between two pages.

    Attributes:
        busy_s: by metric: seconds for which it was full, or as long a time at a part of its limit.
        requests: that it computed.
    """

    busy_s: Mapping[str, float]
    requests: float


@dataclass
class GpuServer:
    """One GPU server, as it is known.

    Attributes:
        machine: its name.
        heard_at: when its last sound page was true, in monotonic seconds; None: never.
        gone: nobody listens at its address.
        ready: what its last sound page says.
        load: share of its limit in use, by metric, likewise; a metric is missing until two pages came.
    """

    machine: Machine
    heard_at: float | None = None
    gone: bool = False
    ready: bool = False
    load: dict[str, float] = field(default_factory=dict)
    _counters: Counters = field(default_factory=Counters)
    _stamp: float | None = None
    _was_busy: bool = False

    def refused(self) -> None:
        """Nobody listens: it is down, not merely silent. It will start with new counters."""
        self.gone, self.ready = True, False
        self.load.clear()
        self._counters.forget()

    def take(self, page: Page, metrics: Mapping[str, LoadMetric], oddities: list[Oddity]) -> Work | None:
        """Learn from a page; what it did since the last one, if that can be told.

        Args:
            page: its own.
            metrics: that count as load.
            oddities: what is wrong is added to them.
        """
        if page.stamp is not None and page.stamp == self._stamp:
            return None
        self._stamp = page.stamp
        ready = page.total(READY)
        if ready is None:
            oddities.append(Oddity(Kind.NO_SERIES, f"{self.machine} {READY}", "is missing; the page does not count"))
            return None
        if ready not in {0.0, 1.0}:
            text = f"is {ready:g}, neither 0 nor 1; the page does not count"
            oddities.append(Oddity(Kind.ABOVE_LIMIT, f"{self.machine} {READY}", text))
            return None
        if (problem := self._problem(page)) is not None:
            oddities.append(problem)
            if problem.kind is Kind.FROZEN:
                return None
        self.heard_at, self.gone, self.ready = page.at, False, ready == 1.0
        busy = {name: spent for name, one in metrics.items() if (spent := self._spent(name, one, page, oddities))}
        self.load = {name: spent[0] / spent[1] for name, spent in busy.items()}
        done = sum(s.value for s in page.each(REQUESTS) if s.labels.get("outcome") in COMPUTED)
        requests = self._counters.growth(REQUESTS, page.at, done)
        if requests is None or not busy or any(name not in busy for name in metrics):
            return None
        return Work({name: spent[0] for name, spent in busy.items()}, requests.amount)

    def _problem(self, page: Page) -> Oddity | None:
        """A restart, or a page that stands still: a busy server's busy seconds grow with every look."""
        busy, taken = page.total(BUSY), page.total(LOAD)
        if busy is None:
            return None
        was_busy, self._was_busy = self._was_busy, taken == 1.0
        where = f"{self.machine} {BUSY}"
        if self._counters.fell(("seen", BUSY), busy):
            self._counters.forget()
            self._counters.growth(("seen", BUSY), page.at, busy)
            return Oddity(Kind.COUNTER_RESET, where, f"fell to {busy:g}; it has started anew")
        grown = self._counters.growth(("seen", BUSY), page.at, busy)
        if grown is not None and grown.amount == 0 and was_busy and self._was_busy:
            return Oddity(Kind.FROZEN, where, "stands still while it computes; the page does not count")
        return None

    def _spent(self, name: str, metric: LoadMetric, page: Page, oddities: list[Oddity]) -> tuple[float, float] | None:
        """Busy seconds, and the seconds in which they were spent; None where it cannot be told."""
        value = page.total(metric.series)
        if value is None:
            text = "is missing; its load by it is not known"
            oddities.append(Oddity(Kind.NO_SERIES, f"{self.machine} {metric.series}", text))
            return None
        # Of a gauge only the time counts: it is taken to have been as it is since the last page.
        growth = self._counters.growth(name, page.at, value if metric.kind == "counter" else 0.0)
        if growth is None:
            return None
        used = (growth.per_s if metric.kind == "counter" else value) / metric.limit
        share = max(0.0, used - metric.idle) / (1 - metric.idle)
        if share > NEARLY_FULL:
            text = f"says {share:.0%} of its limit; taken as not there"
            oddities.append(Oddity(Kind.ABOVE_LIMIT, f"{self.machine} {metric.series}", text))
            return None
        return min(share, 1.0) * growth.seconds, growth.seconds
