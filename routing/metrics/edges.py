"""Edges: what one of them says on Envoy's `/stats/prometheus`.

Seen on Envoy 1.40: jobs are completed once each, whatever their attempts; a job that its client gives up is reset;
`...zone...` has a label for the source and one for the destination, which the bootstrap's `stats_tags` make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .growth import Counters
from .oddities import Kind, Oddity
from .reading import Page
from .targets import Machine

COMPLETED = "envoy_cluster_upstream_rq_completed"
RETRIES = "envoy_cluster_upstream_rq_retry"
ACTIVE = "envoy_http_downstream_rq_active"
GIVEN_UP = "envoy_http_downstream_rq_rx_reset"
BETWEEN_REGIONS = "envoy_cluster_zone_upstream_rq_xx"
UPTIME = "envoy_server_uptime"
SERIES = frozenset({COMPLETED, RETRIES, ACTIVE, GIVEN_UP, BETWEEN_REGIONS, UPTIME})

_JOBS: Mapping[str, str] = {"envoy_cluster_name": "jobs"}
_EDGE: Mapping[str, str] = {"envoy_http_conn_manager_prefix": "edge"}
_SUCCESS: Mapping[str, str] = {"envoy_response_code_class": "2"}

FILTER = (
    r"^cluster\.jobs\.(upstream_rq_(completed|retry)$|zone\..*\.upstream_rq_2xx$)"
    r"|^http\.edge\.downstream_rq_(active|rx_reset)$|^server\.uptime$"
)
"""Of Envoy's own names: an edge's page has 130 KB without it, and 1 KB with it."""

UPTIME_STEP_S = 5.0
"""Envoy's uptime is brought up to date every 5 s (`stats_flush_interval`, as by default)."""


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
class Edge:
    """One edge, as it is known.

    Attributes:
        machine: its name.
        heard_at: when its last sound page was true, in monotonic seconds; None: never.
        gone_since: when nobody listened at its address for the first time; None: someone does.
    """

    machine: Machine
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

    def take(self, page: Page, stale_after_s: float, oddities: list[Oddity]) -> Traffic | None:
        """Learn from a page; what happened since the last one, if that can be told.

        Args:
            page: its own.
            stale_after_s: an uptime that stands still for longer means that the page does.
            oddities: what is wrong is added to them.
        """
        if page.stamp is not None and page.stamp == self._stamp:
            return None
        self._stamp = page.stamp
        completed, active = page.total(COMPLETED, **_JOBS), page.total(ACTIVE, **_EDGE)
        for name, value in ((COMPLETED, completed), (ACTIVE, active)):
            if value is None:
                where = f"{self.machine} {name}"
                oddities.append(Oddity(Kind.NO_SERIES, where, "is missing; the page does not count"))
                return None
        assert completed is not None
        assert active is not None
        if self._stands_still(page, stale_after_s):
            where = f"{self.machine} {UPTIME}"
            oddities.append(Oddity(Kind.FROZEN, where, "stands still; the page does not count"))
            return None
        if self._counters.fell("completed", completed):
            where = f"{self.machine} {COMPLETED}"
            oddities.append(Oddity(Kind.COUNTER_RESET, where, f"fell to {completed:g}; it has started anew"))
            self._counters.forget()
        self.heard_at, self.gone_since = page.at, None
        return self._traffic(page, completed, active)

    def _traffic(self, page: Page, completed: float, active: float) -> Traffic | None:
        given_up = page.total(GIVEN_UP, **_EDGE) or 0.0
        done = self._counters.growth("completed", page.at, completed)
        # Jobs that came = that were completed + that were given up + by which those in flight have become more.
        # Requests would be the simpler counter, but health checks, pages and refused keys are requests too.
        came = self._counters.change("came", page.at, completed + given_up + active)
        retries = self._counters.growth("retries", page.at, page.total(RETRIES, **_JOBS) or 0.0)
        answered = {}
        for sample in page.each(BETWEEN_REGIONS, **_JOBS, **_SUCCESS):
            to = sample.labels.get("destination_region", "")
            if (grown := self._counters.growth(("answered", to), page.at, sample.value)) is not None:
                answered[to] = grown.amount
            elif done is not None:
                answered[to] = sample.value  # the first answer from there since the edge started makes the series
        if done is None or came is None:
            return None
        # It may fall a little: a page in flight counts like a job, until it is done.
        return Traffic(max(0.0, came.amount), retries.amount if retries else 0.0, came.seconds, answered)

    def _stands_still(self, page: Page, stale_after_s: float) -> bool:
        uptime = page.total(UPTIME)
        if uptime is None:
            return False  # not every edge is an Envoy
        if self._uptime is None or self._uptime[1] != uptime:
            self._uptime = (page.at, uptime)
        return page.at - self._uptime[0] > max(stale_after_s, 2 * UPTIME_STEP_S)
