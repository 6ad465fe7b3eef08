"""GPU servers that come and go with the load, by the rule of the ScaledObject in `deploy/kubernetes/base/scaling`.

KEDA asks for the jobs that a dispatcher has, in the line and at servers, as a mean over some time; a horizontal pod
autoscaler divides them by `busy_share` and bounds how fast servers come and go. A server that comes is started and
warmed up before it is ready, and paid from the start; one that goes ends the job that it has.

A region without servers gets no jobs that could bring one: what its users ask for does (KEDA's second trigger), while
other regions serve them. Spot servers are taken away with a notice, one by one or all of a region at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, exp, floor
from random import Random
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from .demand import rates_of
from .scaling_settings import Scaling

if TYPE_CHECKING:
    from .run import Simulation

T = TypeVar("T", int, float)
Kind = Literal["owned", "spot"]

TOLERANCE = 0.1
"""Kubernetes' own: a wish that is so near to what there is changes nothing."""


@dataclass
class Autoscaler:
    """The rule for one region.

    Attributes:
        settings: of it.
        least, most: servers.
        replicas: that are wanted now, ready or not.
    """

    settings: Scaling
    least: int
    most: int
    replicas: int
    _jobs: deque[tuple[float, float]] = field(default_factory=deque)
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)
    _active_at: float = 0.0

    def step(self, now: float, jobs: float, demand: float = 0.0) -> int:
        """Return the servers that are wanted.

        Args:
            now: s.
            jobs: that the dispatcher has.
            demand: jobs that the region's users would have at servers; 0 where servers do not come by it.
        """
        rule = self.settings
        _keep(self._jobs, (now, jobs), now - rule.mean_s)
        asked = max(demand, sum(one for _, one in self._jobs) / len(self._jobs))
        if self.least == 0 and not self._stays(now, asked):
            return self.replicas
        wanted = asked / rule.busy_share
        wish = self.replicas if abs(wanted / max(1, self.replicas) - 1) <= TOLERANCE else ceil(wanted)
        _keep(self._wishes, (now, wish), now - rule.settle_s)
        if wish > self.replicas:
            base = self.replicas - self._changed(now - rule.up_s, 1)
            bound = base + max(ceil(base * rule.up_share), rule.up_servers)
            wish = min(wish, max(bound, self.replicas))
        else:  # a lull sends nobody away: the highest wish of the last while counts
            base = self.replicas - self._changed(now - rule.down_s, -1)
            bound = floor(base * (1 - rule.down_share))
            wish = min(self.replicas, max(*(one for _, one in self._wishes), bound))
        wish = min(self.most, max(1, self.least, wish))
        if wish != self.replicas:
            self._changes.append((now, wish - self.replicas))
            self.replicas = wish
        return wish

    def _stays(self, now: float, asked: float) -> bool:
        """KEDA's own part: the first server comes, and the last go. Whether the autoscaler has a say."""
        if active := asked > self.settings.activate:
            self._active_at = now
        if self.replicas == 0:
            self.replicas = int(active)
            return False
        if now - self._active_at < self.settings.cooldown_s:
            return True
        self.replicas = 0
        self._wishes.clear()
        return False

    def _changed(self, since: float, sign: int) -> int:
        """Return the change of one sign since a moment."""
        longest = max(self.settings.up_s, self.settings.down_s)
        while self._changes and self._changes[0][0] <= self._changes[-1][0] - longest:
            self._changes.popleft()
        return sum(change for at, change in self._changes if at > since and change * sign > 0)


class Servers:
    """The servers of all regions, as they come and go.

    Args:
        simulation: that they are of.
        kill: ends so many servers of a region, with the jobs that they have.

    Attributes:
        paid_s, spot_s: seconds of servers that were paid, and of spot servers among them, by region.
        paid: [(time, servers of each region that are paid from then on)].
    """

    def __init__(self, simulation: Simulation, kill: Callable[[int, int], object]) -> None:
        self._run, self._kill, fleet = simulation, kill, simulation.experiment.fleet
        found = simulation.experiment.scenario.scaling
        assert found is not None
        self._rule: Scaling = found
        self._random = Random(simulation.seed)  # noqa: S311  # no secret
        self._names = fleet.names
        self._service_s = simulation.experiment.times.mean_s
        demand = rates_of(simulation.experiment)
        self._scalers = []
        for name, region in fleet.regions.items():
            least = max(found.region_least.get(name, found.least), ceil(found.least_share * region.gpus))
            least = min(region.gpus, least)
            first = ceil(demand[name].at(0.0) * self._service_s / found.busy_share) if name in demand else 0
            self._scalers.append(Autoscaler(found, least, region.gpus, min(region.gpus, max(least, first))))
        count = len(self._scalers)
        self.paid_s, self.spot_s, self._since = np.zeros(count), np.zeros(count), 0.0
        self._ready = [Counter[Kind]() for _ in range(count)]
        self._starting = [Counter[Kind]() for _ in range(count)]
        self._none_until = [0.0] * count  # spot servers
        self._arrived: list[deque[tuple[float, int]]] = [deque() for _ in range(count)]
        self.paid: list[tuple[float, list[int]]] = []

    def plan(self) -> None:
        """Have them come and go until the scenario's end."""
        for region, (scaler, here) in enumerate(zip(self._scalers, self._run.state.regions, strict=True)):
            for _ in range(int(here["gpus"]) - scaler.replicas):
                self._leave(region)
            self._ready[region].update(self._wanted(region))
        self._note()
        scenario = self._run.experiment.scenario
        for i in range(1, int(scenario.duration_s / self._rule.look_s) + 1):
            self._run.at(i * self._rule.look_s, self._look)
        for one in self._rule.spot.reclaims if self._rule.spot else ():
            region, until = self._names.index(one.region), one.until_s or scenario.duration_s
            self._run.at(one.at_s, lambda region=region, until=until: self._reclaim(region, until))  # type: ignore[misc]

    def end(self) -> None:
        """Count what was paid until now."""
        self._pay()

    def _wanted(self, region: int) -> dict[Kind, int]:
        """Return how many there should be of each kind."""
        scaler, spot = self._scalers[region], self._rule.spot
        cheap = floor(spot.share * max(0, scaler.replicas - scaler.least)) if spot else 0
        return {"owned": scaler.replicas - cheap, "spot": cheap}

    def _look(self) -> None:
        state, now = self._run.state, self._run.now
        self._pay()
        waiting = np.zeros(len(self._scalers), np.int64)
        np.add.at(waiting, state.hosts["region"], state.hosts["waiting"])
        for region, scaler in enumerate(self._scalers):
            if self._rule.spot is not None:
                dies = 1 - exp(-self._rule.look_s / self._rule.spot.life_s)
                self._vanish(region, sum(self._random.random() < dies for _ in range(self._ready[region]["spot"])))
            demand = self._demand(region) if self._rule.by_demand or scaler.least == 0 else 0.0
            scaler.step(now, float(state.regions[region]["busy"] + waiting[region]), demand)
            for kind, wanted in self._wanted(region).items():
                self._fit(region, kind, wanted)
        self._note()

    def _demand(self, region: int) -> float:
        """Return the servers that the users of a region would keep busy, by their requests of the last while."""
        seen = self._arrived[region]
        seen.append((self._run.now, int(self._run.state.regions[region]["arrived"])))
        while len(seen) > 2 and seen[1][0] <= self._run.now - self._rule.mean_s:
            seen.popleft()
        (since, before), (now, after) = seen[0], seen[-1]
        return (after - before) / (now - since) * self._service_s if now > since else 0.0

    def _fit(self, region: int, kind: Kind, wanted: int) -> None:
        """Have servers of a kind start until there are as many as should be, or go."""
        ready, starting = self._ready[region], self._starting[region]
        if kind == "spot" and self._run.now < self._none_until[region]:
            return
        for _ in range(wanted - ready[kind] - starting[kind]):
            starting[kind] += 1
            later = self._run.now + self._rule.start_s
            self._run.at(later, lambda: self._come(region, kind))
        for _ in range(ready[kind] + starting[kind] - wanted):
            if starting[kind]:
                starting[kind] -= 1  # the youngest go first, and those have no job yet
            else:
                ready[kind] -= 1
                self._leave(region)

    def _come(self, region: int, kind: Kind) -> None:
        """A server is ready, unless it was sent away while it started."""
        if not self._starting[region][kind]:
            return
        self._starting[region][kind] -= 1
        self._ready[region][kind] += 1
        host = min(self._hosts(region), key=lambda one: int(self._run.state.hosts[one]["gpus"]))
        self._run.state.hosts[host]["gpus"] += 1
        self._run.state.hosts[host]["free"] += 1
        self._run.state.regions[region]["gpus"] += 1
        self._tell(region)

    def _leave(self, region: int) -> None:
        """A server gets no more jobs, and ends the one that it has."""
        host = max(self._hosts(region), key=lambda one: int(self._run.state.hosts[one]["gpus"]))
        at = self._run.state.hosts[host]
        if at["gpus"] == 0:
            return
        if self._random.randrange(int(at["gpus"])) < at["free"]:
            at["free"] -= 1
        else:
            at["leaving"] += 1
        at["gpus"] -= 1
        self._run.state.regions[region]["gpus"] -= 1
        self._tell(region)

    def _vanish(self, region: int, count: int) -> None:
        """Spot servers are taken away: those whose job takes longer than the notice lose it."""
        assert self._rule.spot is not None
        late = max(0.0, 1 - self._rule.spot.notice_s / self._service_s)
        for _ in range(count):
            self._ready[region]["spot"] -= 1
            if self._random.random() < late:
                self._kill(region, 1)
                self._tell(region)
            else:
                self._leave(region)

    def _reclaim(self, region: int, until: float) -> None:
        self._pay()
        self._vanish(region, self._ready[region]["spot"])
        self._starting[region]["spot"], self._none_until[region] = 0, until
        self._note()

    def _tell(self, region: int) -> None:
        """Edges learn by health checks that a region has its first server, or no more."""

        def know() -> None:
            rows, name = self._run.rows, self._names[region]
            is_dead = int(self._run.state.regions[region]["gpus"]) == 0
            if is_dead != (name in rows.dead):
                rows.dead = rows.dead ^ {name}
                rows.write(self._run.state)

        if int(self._run.state.regions[region]["gpus"]) <= 1:
            self._run.at(self._run.now + self._run.experiment.scenario.proxies.detection_s, know)

    def _hosts(self, region: int) -> range:
        here = self._run.state.regions[region]
        return range(int(here["first_host"]), int(here["first_host"] + here["hosts"]))

    def _count(self, kind: Kind) -> list[int]:
        return [ready[kind] + new[kind] for ready, new in zip(self._ready, self._starting, strict=True)]

    def _pay(self) -> None:
        if self.paid:
            seconds = self._run.now - self._since
            self.paid_s += np.array(self.paid[-1][1]) * seconds
            self.spot_s += np.array(self._count("spot")) * seconds
        self._since = self._run.now

    def _note(self) -> None:
        counts = [a + b for a, b in zip(self._count("owned"), self._count("spot"), strict=True)]
        if not self.paid or counts != self.paid[-1][1]:
            self.paid.append((self._run.now, counts))


def _keep(found: deque[tuple[float, T]], one: tuple[float, T], since: float) -> None:
    """Add the newest, and forget what is older than a moment."""
    found.append(one)
    while found[0][0] <= since:
        found.popleft()
