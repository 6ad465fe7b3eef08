"""Pages of proxies to regions: what each knows, what is held while it is silent, and when it counts as down.

A region's dispatchers know which of its GPU servers are ready, since they ask each of them every second: their word
counts at once, in both directions, whether it is read from their pages or from a Prometheus. Only silence is doubtful.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp

from ..fleet import Fleet
from .observation import Kind, Observation, Page, Reading, RegionSeen, ScrapeFailure, ScrapeProblem, Target
from .proxies import Dispatcher, Edge, Traffic, Work

USUAL_S = 60.0
"""Time constant of how many answers an edge usually gets from a region."""
SURE_AFTER = 7.0
"""Answers that should have come and did not, before a region that is not heard of counts as down. Were it up, none
of seven would come by chance once in a thousand times."""
FORGOTTEN_AFTER = 40.0
"""A proxy that a Prometheus no longer shows is forgotten after so many times `stale_after_s`: 10 minutes."""
MOST_DEMAND = 100.0
"""A region whose demand is above so many times the capacity of the whole fleet is not believed."""
MOST_TIMES = 10.0
"""A cost is kept within service_time_s / 10 and 10 service_time_s: beyond, something is counted wrongly."""


@dataclass
class Costs:
    """What one request per second costs in load: seconds of a GPU server, region by region.

    Busy seconds y are regressed on requests x, through the origin, since an idle server has no load. Requests come at
    random, so that the variance of y grows with x; least squares with weights 1/x then has the solution

        cost = sum(y) / sum(x)

    which, unlike the unweighted one, does not come out low because x is noisy too (in windows of four requests by a
    fifth). The sums forget with a time constant. The prior is as much data as n requests of the service time in
    `fleet.yaml`:

        fleet:   c_f = (n * service_time_s + sum of all y) / (n + sum of all x)
        region:  c_r = (n * c_f            + sum of its y) / (n + sum of its x)

    so that an idle region has the cost that was measured in the others.

    Attributes:
        regions: of the fleet.
        service_time_s: the prior.
        prior_requests: what the prior weighs, n of the formula. Service times that vary by a quarter of their
            mean are known to 6 % after 20 requests, whether the prior was right or not worth having.
        memory_s: time constant of forgetting.
    """

    regions: Iterable[str]
    service_time_s: float
    prior_requests: float = 20.0
    memory_s: float = 300.0
    _busy_s: dict[str, float] = field(default_factory=dict)
    _requests: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._busy_s, self._requests = dict.fromkeys(self.regions, 0.0), dict.fromkeys(self.regions, 0.0)

    def forget(self, seconds: float) -> None:
        """Let time pass."""
        kept = exp(-max(0.0, seconds) / self.memory_s)
        for sums in (self._busy_s, self._requests):
            for region in sums:
                sums[region] *= kept

    def add(self, region: str, busy_s: float, requests: float) -> None:
        """Take what GPU servers of a region did: seconds in which they computed, and requests that they did."""
        self._busy_s[region] += busy_s
        self._requests[region] += requests

    def cost_s(self, region: str) -> float:
        """Seconds of a GPU server that a request takes there."""
        fleet = self._with_prior(self.service_time_s, sum(self._busy_s.values()), sum(self._requests.values()))
        cost = self._with_prior(fleet, self._busy_s[region], self._requests[region])
        return min(max(cost, self.service_time_s / MOST_TIMES), self.service_time_s * MOST_TIMES)

    def _with_prior(self, prior_s: float, busy_s: float, requests: float) -> float:
        return (self.prior_requests * prior_s + busy_s) / (self.prior_requests + max(0.0, requests))


class Regions:
    """Turns readings into observations. It asks no clock and no network: the same readings give the same result.

    Args:
        fleet: whose regions they are.
        proxies: all that there are; None where that shows as it goes, as with a Prometheus.
    """

    def __init__(self, fleet: Fleet, proxies: Iterable[Target] | None = None) -> None:
        self._fleet = fleet
        settings = fleet.metrics
        self._costs = Costs(fleet.names, fleet.service_time_s, settings.cost_prior_requests, settings.cost_memory_s)
        self._dispatchers: dict[str, dict[Target, Dispatcher]] = {name: {} for name in fleet.names}
        self._edges: dict[str, dict[Target, Edge]] = {name: {} for name in fleet.names}
        self._usual_rps: dict[Target, dict[str, float]] = {}
        self._unanswered: dict[str, float] = dict.fromkeys(fleet.names, 0.0)
        self._most_rps = MOST_DEMAND * sum(fleet.capacity_rps(region) for region in fleet.names)
        self._started_at: float | None = None
        self._last_at: float | None = None
        self._all_known = proxies is not None
        for proxy in proxies or ():
            self._know(proxy)

    def observe(self, reading: Reading, now: float) -> Observation:
        """Take a round's pages.

        Args:
            reading: of the source.
            now: monotonic seconds.
        """
        problems = list(reading.problems)
        self._started_at = now if self._started_at is None else self._started_at
        self._costs.forget(0.0 if self._last_at is None else now - self._last_at)
        self._last_at = now
        traffic: dict[Target, Traffic] = {}
        busy: dict[str, float] = {}
        for page in reading.pages:
            self._take(page, traffic, busy, problems)
        for failure in reading.failures:
            self._miss(failure, now, problems)
        if not self._all_known:
            self._forget(now)
        answered = self._answered(traffic)
        regions = {name: self._region(name, traffic, busy.get(name), now, problems) for name in self._fleet.names}
        return Observation(regions, answered, tuple(problems))

    def _know(self, proxy: Target) -> Dispatcher | Edge:
        if proxy.tier == "dispatcher":
            return self._dispatchers[proxy.region].setdefault(proxy, Dispatcher(proxy))
        return self._edges[proxy.region].setdefault(proxy, Edge(proxy))

    def _forget(self, now: float) -> None:
        """Proxies come and go where something scales them; one that has gone for good is no news."""
        oldest = now - FORGOTTEN_AFTER * self._fleet.stale_after_s
        for name in self._fleet.names:
            known: dict[Target, Dispatcher | Edge] = {**self._dispatchers[name], **self._edges[name]}
            for proxy, one in known.items():
                if one.heard_at is not None and one.heard_at < oldest:
                    self._dispatchers[name].pop(proxy, None)
                    self._edges[name].pop(proxy, None)
                    self._usual_rps.pop(proxy, None)

    def _take(
        self, page: Page, traffic: dict[Target, Traffic], busy: dict[str, float], problems: list[ScrapeProblem]
    ) -> None:
        proxy, region = self._know(page.proxy), page.proxy.region
        seen = proxy.take(page, self._fleet.stale_after_s, problems)
        if isinstance(seen, Work):
            self._costs.add(region, seen.busy_s, seen.jobs)
        elif isinstance(seen, Traffic):
            traffic[page.proxy] = seen
        if isinstance(proxy, Dispatcher):
            busy[region] = busy.get(region, 0.0) + proxy.in_service

    def _miss(self, failure: ScrapeFailure, now: float, problems: list[ScrapeProblem]) -> None:
        problems.append(ScrapeProblem(failure.kind, str(failure.proxy), failure.text))
        if failure.kind is Kind.REFUSED:
            self._know(failure.proxy).refused(now)

    def _answered(self, traffic: dict[Target, Traffic]) -> dict[str, dict[str, float]]:
        """Jobs per second from each region to each; and which regions owe answers that usually come."""
        rps: dict[str, dict[str, float]] = {}
        answering: set[str] = set()
        for proxy, seen in traffic.items():
            row = rps.setdefault(proxy.region, {})
            for to, jobs in seen.answered.items():
                if to in self._fleet.regions:
                    row[to] = row.get(to, 0.0) + jobs / seen.seconds
            answering.update(to for to, jobs in row.items() if jobs > 0)
        for to in answering:
            self._unanswered[to] = 0.0
        for proxy, seen in traffic.items():
            usual = self._usual_rps.setdefault(proxy, {})
            gain = 1.0 - exp(-seen.seconds / USUAL_S)
            for to in {*usual, *seen.answered} & self._unanswered.keys():
                if to in answering:
                    now_rps = seen.answered.get(to, 0.0) / seen.seconds
                    usual[to] = usual[to] + gain * (now_rps - usual[to]) if to in usual else now_rps
                else:
                    self._unanswered[to] += usual.get(to, 0.0) * seen.seconds
        return rps

    def _region(
        self,
        name: str,
        traffic: dict[Target, Traffic],
        busy: float | None,
        now: float,
        problems: list[ScrapeProblem],
    ) -> RegionSeen:
        demand, retries, over_s, gone = self._demand(name, traffic, now, problems)
        ready = self._ready(name, now, problems)
        expected, cost_s = self._fleet.regions[name].expected, self._costs.cost_s(name)
        return RegionSeen(
            demand_rps=demand,
            over_s=over_s,
            retries_rps=retries,
            capacity_rps=None if ready is None else ready / cost_s,
            gpus_ready=ready,
            gpus_missing=None if ready is None else max(0, expected - ready),
            load=min(1.0, busy / ready) if ready and busy is not None else None,
            waiting=None if busy is None else sum(one.waiting for one in self._dispatchers[name].values()),
            cost_s=cost_s,
            edge_gone=gone,
        )

    def _since(self, moment: float | None) -> float:
        """A moment; what never was counts from the start."""
        return (self._started_at or 0.0) if moment is None else moment

    def _ready(self, name: str, now: float, problems: list[ScrapeProblem]) -> int | None:
        """GPU servers that are ready in a region, or None where that is not known."""
        expected, dispatchers = self._fleet.regions[name].gpus, self._dispatchers[name].values()
        if not expected:
            return 0
        stale_s = self._fleet.stale_after_s
        fresh = [one for one in dispatchers if one.heard_at is not None and now - one.heard_at <= stale_s]
        ready = sum(one.ready for one in fresh)
        known = bool(fresh)
        for one in dispatchers:
            silent_s = now - self._since(one.heard_at)
            if one in fresh:
                continue
            if silent_s <= stale_s:
                return None  # it has yet to say its first word
            known |= self._is_down(name, one)
            text = "counts as down" if known else "what was known of its capacity is held"
            problems.append(ScrapeProblem(Kind.STALE, str(one.proxy), f"not heard of for {silent_s:.0f} s; {text}"))
        if not dispatchers and now - self._since(None) > stale_s:
            text = f"none is heard of, and the fleet has {expected} GPUs there"
            problems.append(ScrapeProblem(Kind.STALE, f"{name} dispatcher", text))
            known = self._unanswered[name] >= SURE_AFTER
        if ready > expected:
            text = f"{ready} GPU servers are ready, and the fleet has {expected}; no more are counted"
            problems.append(ScrapeProblem(Kind.TOO_MANY, f"{name} dispatcher", text))
        return min(ready, expected) if known else None

    def _is_down(self, name: str, silent: Dispatcher) -> bool:
        """Whether it is the dispatcher that is missing, more likely than its metrics.

        Nobody listens at its address, or the region answers no jobs. Only edges that used to get answers from it, and
        that are heard, can say that it does not: an edge that sends it one job a minute would not know.
        """
        return silent.gone_since is not None or self._unanswered[name] >= SURE_AFTER

    def _demand(
        self, name: str, traffic: dict[Target, Traffic], now: float, problems: list[ScrapeProblem]
    ) -> tuple[float | None, float | None, float, bool]:
        """Demand, retries, over which time, and whether the edges are gone."""
        edges = self._edges[name]
        if not edges:  # it has no users, or none of its edges was ever heard
            return (0.0, 0.0, 0.0, False) if self._all_known else (None, None, 0.0, False)
        heard = [traffic[proxy] for proxy in edges if proxy in traffic]
        silent = [edge for proxy, edge in edges.items() if proxy not in traffic]
        for edge in silent:
            # Users of an edge that is down went to another one, which has their demand now.
            down = edge.gone_since is not None and now - edge.gone_since > self._fleet.stale_after_s
            silent_s = now - self._since(edge.heard_at)
            stale = silent_s > self._fleet.stale_after_s
            if stale and not down:
                problems.append(ScrapeProblem(Kind.STALE, str(edge.proxy), f"not heard of for {silent_s:.0f} s"))
            if not down and not (stale and heard):
                return None, None, 0.0, False
        if not heard:
            return 0.0, 0.0, 0.0, True
        demand = sum(seen.jobs / seen.seconds for seen in heard)
        if demand > self._most_rps:
            fleet_rps = self._most_rps / MOST_DEMAND
            text = f"says {demand:.3g} jobs per second, and the whole fleet can do {fleet_rps:.3g}; not believed"
            problems.append(ScrapeProblem(Kind.ABOVE_LIMIT, f"{name} edge", text))
            return None, None, 0.0, False
        retries = sum(seen.retries / seen.seconds for seen in heard)
        return demand, retries, min(seen.seconds for seen in heard), False
