"""Proxies: what a dispatcher says on HAProxy's `/metrics`, and an edge on Envoy's `/stats/prometheus`.

Seen on HAProxy 2.8: a backend's sessions are the jobs in its queue and those at its servers; `active_servers` are those
that pass their health check, busy or not; only an answer of the service is 2xx, refusals are 429 and 503.

Seen on Envoy 1.40: jobs are completed once each, whatever their attempts; a job that its client gives up is reset;
`...zone...` has a label for the source and one for the destination, which the bootstrap's `stats_tags` make.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from .observation import Kind, Page, ScrapeProblem, Target, Tier

SERVERS_UP = "haproxy_backend_active_servers"
SESSIONS = "haproxy_backend_current_sessions"
QUEUE = "haproxy_backend_current_queue"
ANSWERS = "haproxy_backend_http_responses_total"
DISPATCHER_UPTIME = "haproxy_process_uptime_seconds"
GPUS, CANDIDATE = "gpus", "candidate"
"""Names of a dispatcher's backends with GPU servers: all, or all but those with another version of the model."""

COMPLETED = "envoy_cluster_upstream_rq_completed"
RETRIES = "envoy_cluster_upstream_rq_retry"
ACTIVE = "envoy_http_downstream_rq_active"
GIVEN_UP = "envoy_http_downstream_rq_rx_reset"
BETWEEN_REGIONS = "envoy_cluster_zone_upstream_rq_xx"
EDGE_UPTIME = "envoy_server_uptime"

SERIES: Mapping[Tier, frozenset[str]] = {
    "dispatcher": frozenset({SERVERS_UP, SESSIONS, QUEUE, ANSWERS, DISPATCHER_UPTIME}),
    "edge": frozenset({COMPLETED, RETRIES, ACTIVE, GIVEN_UP, BETWEEN_REGIONS, EDGE_UPTIME}),
}
"""The series that are wanted of each tier."""

UPTIME_STEP_S = 5.0
"""Envoy's uptime is brought up to date every 5 s (`stats_flush_interval`, as by default), HAProxy's each second."""
SHORTEST_S = 0.05
"""Readings that are nearer say nothing of a rate: reading takes some milliseconds itself."""

_JOBS: Mapping[str, str] = {"envoy_cluster_name": "jobs"}
_EDGE: Mapping[str, str] = {"envoy_http_conn_manager_prefix": "edge"}


@dataclass(frozen=True)
class Growth:
    """What a counter gained.

    Attributes:
        amount: 0 or more, but for `Counters.change`.
        seconds: time in which it did; above 0.
    """

    amount: float
    seconds: float


@dataclass
class Counters:
    """The counters of one proxy, as growth between two readings, whatever their distance, and never across a restart.

    Times are monotonic, in seconds; when a clock is set, no rate changes. A counter that falls has started anew:
    what it gained meanwhile cannot be known, so that it gives no growth this once.
    """

    _last: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def growth(self, name: Hashable, at: float, value: float) -> Growth | None:
        """Growth since the last reading; None for the first, after a reset, and for readings too near."""
        change = self.change(name, at, value)
        return change if change is not None and change.amount >= 0 else None

    def change(self, name: Hashable, at: float, value: float) -> Growth | None:
        """As `growth`, for what may fall as well: then the amount is negative."""
        before = self._last.get(name)
        if before is not None and 0 <= at - before[0] < SHORTEST_S:
            return None
        self._last[name] = (at, value)
        if before is None or at < before[0]:
            return None
        return Growth(value - before[1], at - before[0])

    def fell(self, name: Hashable, value: float) -> bool:
        """Whether a value is below the last reading."""
        before = self._last.get(name)
        return before is not None and value < before[1]

    def forget(self) -> None:
        """Start anew with each counter, as after a restart of the proxy."""
        self._last.clear()


@dataclass
class _Known:
    """A proxy, as it is known.

    Attributes:
        proxy: its name.
        heard_at: when its last usable page was true, in monotonic seconds; None: never.
        gone_since: when nobody listened at its address for the first time; None: someone does.
    """

    proxy: Target
    heard_at: float | None = None
    gone_since: float | None = None
    _counters: Counters = field(default_factory=Counters)
    _stamp: float | None = None
    _uptime: tuple[float, float] | None = None

    def refused(self, now: float) -> None:
        """Nobody listens. It will start with new counters."""
        if self.gone_since is None:
            self.gone_since = now
        self._counters.forget()
        self._uptime = None

    def _is_new(self, page: Page) -> bool:
        new = page.stamp is None or page.stamp != self._stamp
        self._stamp = page.stamp
        return new

    def _lacks(self, page: Page, values: Mapping[str, float | None], problems: list[ScrapeProblem]) -> bool:
        for name, value in values.items():
            if value is None:
                where = f"{self.proxy} {name}"
                problems.append(ScrapeProblem(Kind.NO_SERIES, where, "is missing; the page does not count"))
                return True
        return False

    def _stands_still(self, page: Page, series: str, stale_after_s: float, problems: list[ScrapeProblem]) -> bool:
        uptime = page.total(series)
        if uptime is None:
            return False  # not every proxy says it
        if self._uptime is None or self._uptime[1] != uptime:
            self._uptime = (page.at, uptime)
        if page.at - self._uptime[0] <= max(stale_after_s, 2 * UPTIME_STEP_S):
            return False
        where = f"{self.proxy} {series}"
        problems.append(ScrapeProblem(Kind.FROZEN, where, "stands still; the page does not count"))
        return True

    def _heard(self, page: Page, counter: str, value: float, problems: list[ScrapeProblem]) -> None:
        """Take the page as true; the counter tells whether the proxy has started anew since the last one."""
        if self._counters.fell(counter, value):
            where = f"{self.proxy} {counter}"
            problems.append(ScrapeProblem(Kind.COUNTER_RESET, where, f"fell to {value:g}; it has started anew"))
            self._counters.forget()
        self.heard_at, self.gone_since = page.at, None


@dataclass(frozen=True)
class Work:
    """What the GPU servers of a dispatcher did between two pages.

    Attributes:
        busy_s: seconds in which they computed, all together.
        jobs: that they did: answers, and half a job for each by which those at them have become more, since a job
            that is under way is half done on average. Below 0 where they are fewer.
    """

    busy_s: float
    jobs: float


@dataclass
class Dispatcher(_Known):
    """One dispatcher.

    Attributes:
        ready: GPU servers that it finds ready, as its last usable page says.
        in_service: jobs at its GPU servers, likewise.
        waiting: jobs in its queue, likewise.
    """

    ready: int = 0
    in_service: float = 0.0
    waiting: float = 0.0

    def take(self, page: Page, stale_after_s: float, problems: list[ScrapeProblem]) -> Work | None:
        """Learn from a page; return what its servers did since the last one, if that can be told.

        HAProxy counts no seconds in service, so they are jobs in service x time: mean of the two pages' jobs. Each
        round's figure is a sample, and their sum over many rounds is right, as by Little's law.

        Args:
            page: its own.
            stale_after_s: an uptime that stands still for longer means that the page does.
            problems: what is wrong is added to them.
        """
        if not self._is_new(page):
            return None
        up, sessions, queue = (_of_gpus(page, name) for name in (SERVERS_UP, SESSIONS, QUEUE))
        answers = _of_gpus(page, ANSWERS, code="2xx")
        if self._lacks(page, {SERVERS_UP: up, SESSIONS: sessions, QUEUE: queue, ANSWERS: answers}, problems):
            return None
        assert up is not None
        assert sessions is not None
        assert queue is not None
        assert answers is not None
        if self._stands_still(page, DISPATCHER_UPTIME, stale_after_s, problems):
            return None
        self._heard(page, ANSWERS, answers, problems)
        self.ready, self.in_service, self.waiting = int(min(up, 1e6)), max(0.0, sessions - queue), queue
        done = self._counters.growth(ANSWERS, page.at, answers)
        begun = self._counters.change(SESSIONS, page.at, self.in_service)
        if done is None or begun is None:
            return None
        # Without the half, a service that has just begun to work would look slow: busy, and no answers yet.
        half = begun.amount / 2
        return Work((self.in_service - half) * done.seconds, done.amount + half)


def _of_gpus(page: Page, name: str, **labels: str) -> float | None:
    """Return the sum of a series over all GPU servers, whatever their version of the model."""
    found = page.total(name, proxy=GPUS, **labels)
    return None if found is None else found + (page.total(name, proxy=CANDIDATE, **labels) or 0.0)


@dataclass(frozen=True)
class Traffic:
    """What an edge's users did between two pages.

    Attributes:
        jobs: that they sent.
        retries: attempts after the first.
        seconds: time in which they did.
        answered: {destination: jobs answered with a result}.
    """

    jobs: float
    retries: float
    seconds: float
    answered: Mapping[str, float]


@dataclass
class Edge(_Known):
    """One edge."""

    def take(self, page: Page, stale_after_s: float, problems: list[ScrapeProblem]) -> Traffic | None:
        """Learn from a page; return what happened since the last one, if that can be told. See `Dispatcher.take`."""
        if not self._is_new(page):
            return None
        completed, active = page.total(COMPLETED, **_JOBS), page.total(ACTIVE, **_EDGE)
        if self._lacks(page, {COMPLETED: completed, ACTIVE: active}, problems):
            return None
        assert completed is not None
        assert active is not None
        if self._stands_still(page, EDGE_UPTIME, stale_after_s, problems):
            return None
        self._heard(page, COMPLETED, completed, problems)
        given_up = page.total(GIVEN_UP, **_EDGE) or 0.0
        done = self._counters.growth(COMPLETED, page.at, completed)
        # Jobs that came = that were completed + that were given up + by which those in flight have become more.
        # Requests would be the simpler counter, but health checks, pages and refused keys are requests too.
        came = self._counters.change("came", page.at, completed + given_up + active)
        retries = self._counters.growth(RETRIES, page.at, page.total(RETRIES, **_JOBS) or 0.0)
        answered = {}
        for sample in page.each(BETWEEN_REGIONS, envoy_response_code_class="2", **_JOBS):
            to = sample.labels.get("destination_region", "")
            if (grown := self._counters.growth(("answered", to), page.at, sample.value)) is not None:
                answered[to] = grown.amount
            elif done is not None:
                answered[to] = sample.value  # the first answer from there since the edge started makes the series
        if done is None or came is None:
            return None
        # It may fall a little: a page in flight counts like a job, until it is done.
        return Traffic(max(0.0, came.amount), retries.amount if retries else 0.0, came.seconds, answered)
