"""Pages of machines to regions: what each knows, what is held while it is silent, and when it counts as down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp
from typing import TypeVar

from ..fleet import Fleet
from .cost import Costs
from .edges import Edge, Traffic
from .observation import Observation, RegionSeen
from .oddities import Kind, Oddity
from .reading import Page, Reading, Silence
from .servers import GpuServer
from .targets import Machine

USUAL_S = 60.0
"""Time constant of how many answers an edge usually gets from a region."""
SURE_AFTER = 7.0
"""Answers that should have come and did not, before a region that is not heard of counts as down. Were it up, none
of seven would come by chance once in a thousand times."""
FORGOTTEN_AFTER = 40.0
"""A machine that a Prometheus no longer shows is forgotten after so many times `stale_after_s`: 10 minutes."""
MOST_DEMAND = 100.0
"""A region whose demand is above so many times the capacity of the whole fleet is not believed."""


class Regions:
    """Turns readings into observations. It asks no clock and no network: the same readings give the same result.

    Args:
        fleet: whose regions they are.
        machines: all that there are; None where that shows as it goes, as with a Prometheus.
    """

    def __init__(self, fleet: Fleet, machines: Iterable[Machine] | None = None) -> None:
        self._fleet = fleet
        settings = fleet.metrics
        self._costs = Costs(
            fleet.names, settings.load, fleet.service_time_s, settings.cost_prior_requests, settings.cost_memory_s
        )
        self._servers: dict[str, dict[Machine, GpuServer]] = {name: {} for name in fleet.names}
        self._edges: dict[str, dict[Machine, Edge]] = {name: {} for name in fleet.names}
        self._usual_rps: dict[tuple[Machine, str], float] = {}
        self._unanswered: dict[str, float] = dict.fromkeys(fleet.names, 0.0)
        self._started_at: float | None = None
        self._last_at: float | None = None
        self._all_known = machines is not None
        for machine in machines or ():
            self._know(machine)

    def observe(self, reading: Reading, now: float) -> Observation:
        """Take a round's pages.

        Args:
            reading: of the source.
            now: monotonic seconds.
        """
        oddities = list(reading.oddities)
        self._started_at = now if self._started_at is None else self._started_at
        self._costs.forget(0.0 if self._last_at is None else now - self._last_at)
        self._last_at = now
        traffic: dict[Machine, Traffic] = {}
        for page in reading.pages:
            self._take(page, traffic, oddities)
        for silence in reading.silences:
            self._miss(silence, now, oddities)
        if not self._all_known:
            self._forget(now)
        answered = self._answered(traffic)
        regions = {name: self._region(name, traffic, now, oddities) for name in self._fleet.names}
        return Observation(regions, answered, tuple(oddities))

    def _know(self, machine: Machine) -> GpuServer | Edge:
        if machine.tier == "gpu":
            return self._servers[machine.region].setdefault(machine, GpuServer(machine))
        return self._edges[machine.region].setdefault(machine, Edge(machine))

    def _forget(self, now: float) -> None:
        """Machines come and go where something scales them; one that has gone for good is no news."""
        oldest = now - FORGOTTEN_AFTER * self._stale_s
        for name in self._fleet.names:
            _drop(self._servers[name], oldest)
            _drop(self._edges[name], oldest)

    def _take(self, page: Page, traffic: dict[Machine, Traffic], oddities: list[Oddity]) -> None:
        machine = self._know(page.machine)
        if isinstance(machine, GpuServer):
            work = machine.take(page, self._fleet.metrics.load, oddities)
            if work is not None:
                self._costs.add(page.machine.region, work.busy_s, work.requests)
        else:
            seen = machine.take(page, self._fleet.stale_after_s, oddities)
            if seen is not None:
                traffic[page.machine] = seen

    def _miss(self, silence: Silence, now: float, oddities: list[Oddity]) -> None:
        machine = self._know(silence.machine)
        oddities.append(Oddity(silence.kind, str(silence.machine), silence.text))
        if silence.kind is Kind.REFUSED:
            if isinstance(machine, GpuServer):
                machine.refused()
            else:
                machine.refused(now)

    def _answered(self, traffic: dict[Machine, Traffic]) -> dict[str, dict[str, float]]:
        """Jobs per second from each region to each."""
        rps: dict[str, dict[str, float]] = {}
        for machine, seen in traffic.items():
            row = rps.setdefault(machine.region, {})
            for to, jobs in seen.answered.items():
                if to in self._fleet.regions:
                    row[to] = row.get(to, 0.0) + jobs / seen.seconds
        for to in self._fleet.names:
            if any(row.get(to, 0.0) > 0 for row in rps.values()):
                self._unanswered[to] = 0.0
                for machine, seen in traffic.items():
                    usual, now_rps = self._usual_rps.get((machine, to)), seen.answered.get(to, 0.0) / seen.seconds
                    gain = 1.0 if usual is None else 1.0 - exp(-seen.seconds / USUAL_S)
                    self._usual_rps[machine, to] = (usual or 0.0) + gain * (now_rps - (usual or 0.0))
            else:
                for machine, seen in traffic.items():
                    self._unanswered[to] += self._usual_rps.get((machine, to), 0.0) * seen.seconds
        return rps

    def _region(self, name: str, traffic: dict[Machine, Traffic], now: float, oddities: list[Oddity]) -> RegionSeen:
        demand, retries, over_s, gone = self._demand(name, traffic, now, oddities)
        servers = _Servers.of(self._servers[name].values(), self._fleet.regions[name].gpus, now, self._stale_s)
        cost_s = self._costs.worst_s(name)
        if servers.surplus:
            text = f"{servers.known} are heard of, and the fleet has {servers.expected}; no more are counted"
            oddities.append(Oddity(Kind.TOO_MANY, f"{name} gpu", text))
        ready: int | None = servers.ready
        if self._in_doubt(name, servers, oddities):
            ready = None
        return RegionSeen(
            demand_rps=demand,
            over_s=over_s,
            retries_rps=retries,
            capacity_rps=None if ready is None else ready / cost_s,
            gpus_ready=ready,
            gpus_missing=servers.missing,
            load=servers.load,
            cost_s=cost_s,
            edge_gone=gone,
            ready_servers=servers.addresses,
        )

    def _since(self, moment: float | None) -> float:
        """A moment; what never was counts from the start."""
        return (self._started_at or 0.0) if moment is None else moment

    @property
    def _stale_s(self) -> float:
        return self._fleet.stale_after_s

    def _in_doubt(self, name: str, servers: _Servers, oddities: list[Oddity]) -> bool:
        """Whether it is the metrics that are missing, more likely than the servers."""
        if not servers.missing or 2 * servers.missing < servers.expected:
            return False
        where = f"{name} gpu"
        seen = f"{servers.missing} of {servers.expected} are not heard of"
        # A region that answers jobs is alive, whatever its pages do. Only edges that used to get answers from it, and
        # that are heard, can say that it does not: an edge that sends it one job a minute would not know.
        if self._unanswered[name] < SURE_AFTER:
            text = f"{seen}, though the region may be up; what was known of its capacity is held"
            oddities.append(Oddity(Kind.HALF_MISSING, where, text))
            return True
        text = f"{seen}, and the region answers no jobs; they count as down"
        oddities.append(Oddity(Kind.HALF_MISSING, where, text))
        return False

    def _demand(
        self, name: str, traffic: dict[Machine, Traffic], now: float, oddities: list[Oddity]
    ) -> tuple[float | None, float | None, float, bool]:
        """Demand, retries, over which time, and whether the edges are gone."""
        edges = self._edges[name]
        if not edges:  # it has no users, or none of its edges was ever heard
            return (0.0, 0.0, 0.0, False) if self._all_known else (None, None, 0.0, False)
        heard = [traffic[machine] for machine in edges if machine in traffic]
        silent = [edge for machine, edge in edges.items() if machine not in traffic]
        for edge in silent:
            # Users of an edge that is down went to another one, which has their demand now.
            down = edge.gone_since is not None and now - edge.gone_since > self._stale_s
            silent_s = now - self._since(edge.heard_at)
            stale = silent_s > self._stale_s
            if stale and not down:
                text = f"not heard of for {silent_s:.0f} s"
                oddities.append(Oddity(Kind.STALE, str(edge.machine), text))
            if not down and not (stale and heard):
                return None, None, 0.0, False
        if not heard:
            return 0.0, 0.0, 0.0, True
        demand = sum(seen.jobs / seen.seconds for seen in heard)
        fleet_rps = sum(self._fleet.capacity_rps(region) for region in self._fleet.names)
        if demand > MOST_DEMAND * fleet_rps:
            text = f"says {demand:.3g} jobs per second, and the whole fleet can do {fleet_rps:.3g}; not believed"
            oddities.append(Oddity(Kind.ABOVE_LIMIT, f"{name} edge", text))
            return None, None, 0.0, False
        retries = sum(seen.retries / seen.seconds for seen in heard)
        return demand, retries, min(seen.seconds for seen in heard), False


_Known = TypeVar("_Known", GpuServer, Edge)


def _drop(known: dict[Machine, _Known], oldest: float) -> None:
    for machine, one in list(known.items()):
        if one.heard_at is not None and one.heard_at < oldest:
            del known[machine]


@dataclass(frozen=True)
class _Servers:
    """The GPU servers of a region, counted."""

    expected: int
    known: int
    ready: int
    missing: int
    surplus: bool
    load: dict[str, float] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()

    @classmethod
    def of(cls, servers: Iterable[GpuServer], expected: int, now: float, stale_s: float) -> _Servers:
        every = list(servers)
        fresh = [one for one in every if one.heard_at is not None and now - one.heard_at <= stale_s and not one.gone]
        gone = sum(one.gone for one in every)
        ready = [one for one in fresh if one.ready]
        metrics = {name for one in ready for name in one.load}
        loads = {name: [one.load[name] for one in ready if name in one.load] for name in sorted(metrics)}
        silent = [one for one in every if one not in fresh and not one.gone]
        return cls(
            expected=expected,
            known=len(fresh) + gone,
            ready=min(len(ready), expected),
            missing=max(0, expected - len(fresh) - gone),
            surplus=len(fresh) + gone > expected,
            load={name: sum(values) / len(values) for name, values in loads.items()},
            # Who is silent may well be up: an ingress that asks it each second knows better than we do.
            addresses=tuple(sorted(one.machine.address for one in [*ready, *silent])),
        )
