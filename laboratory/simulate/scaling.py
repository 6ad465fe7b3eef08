"""GPU servers that come and go with the load, by the rule of the ScaledObject in `deploy/kubernetes/base/scaling`.

KEDA asks for the jobs that a dispatcher has, in the line and at servers, as a mean over some time; a horizontal pod
autoscaler divides them by `busy_share` and bounds how fast servers come and go. A server that comes is started and
warmed up before it is ready, and paid from the start; one that goes ends the job that it has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil, floor
from random import Random
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .demand import rates_of
from .scenario import Scaling

if TYPE_CHECKING:
    from .run import Simulation

T = TypeVar("T", int, float)

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

    def step(self, now: float, jobs: float) -> int:
        """Return the servers that are wanted, given the jobs that the dispatcher has now."""
        rule = self.settings
        _keep(self._jobs, (now, jobs), now - rule.mean_s)
        wanted = sum(one for _, one in self._jobs) / len(self._jobs) / rule.busy_share
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
        wish = min(self.most, max(self.least, wish))
        if wish != self.replicas:
            self._changes.append((now, wish - self.replicas))
            self.replicas = wish
        return wish

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

    Attributes:
        paid_s: seconds of servers that were paid, by region.
        paid: [(time, servers of each region that are paid from then on)].
    """

    def __init__(self, simulation: Simulation) -> None:
        self._run, fleet = simulation, simulation.experiment.fleet
        found = simulation.experiment.scenario.scaling
        assert found is not None
        self._rule: Scaling = found
        self._random = Random(simulation.seed)  # noqa: S311  # no secret
        demand = rates_of(simulation.experiment)
        busy_s = simulation.experiment.times.mean_s / found.busy_share
        self._scalers = []
        for name, region in fleet.regions.items():
            least = min(region.gpus, max(found.least, ceil(found.least_share * region.gpus)))
            first = ceil(demand[name].at(0.0) * busy_s) if name in demand else 0
            self._scalers.append(Autoscaler(found, least, region.gpus, min(region.gpus, max(least, first))))
        self.paid_s = np.zeros(len(self._scalers))
        self._since = 0.0
        self._starting = np.zeros(len(self._scalers), np.int64)
        self.paid: list[tuple[float, list[int]]] = []

    def plan(self) -> None:
        """Have them come and go until the scenario's end."""
        for region, (scaler, here) in enumerate(zip(self._scalers, self._run.state.regions, strict=True)):
            for _ in range(int(here["gpus"]) - scaler.replicas):
                self._leave(region)
        self._note()
        looks = int(self._run.experiment.scenario.duration_s / self._rule.look_s)
        for i in range(1, looks + 1):
            self._run.at(i * self._rule.look_s, self._look)

    def end(self) -> None:
        """Count what was paid until now."""
        self._pay()

    def _look(self) -> None:
        state, now = self._run.state, self._run.now
        waiting = np.zeros(len(self._scalers), np.int64)
        np.add.at(waiting, state.hosts["region"], state.hosts["waiting"])
        before = [scaler.replicas for scaler in self._scalers]
        self._pay()
        for region, scaler in enumerate(self._scalers):
            jobs = float(state.regions[region]["busy"] + waiting[region])
            change = scaler.step(now, jobs) - before[region]
            for _ in range(change):
                self._starting[region] += 1
                self._run.at(now + self._rule.start_s, lambda region=region: self._come(region))  # type: ignore[misc]
            for _ in range(-change):
                if self._starting[region]:
                    self._starting[region] -= 1  # the youngest go first, and those have no job yet
                else:
                    self._leave(region)
        if before != [scaler.replicas for scaler in self._scalers]:
            self._note()

    def _come(self, region: int) -> None:
        """A server is ready, unless it was sent away while it started."""
        if not self._starting[region]:
            return
        self._starting[region] -= 1
        host = min(self._hosts(region), key=lambda one: int(self._run.state.hosts[one]["gpus"]))
        self._run.state.hosts[host]["gpus"] += 1
        self._run.state.hosts[host]["free"] += 1
        self._run.state.regions[region]["gpus"] += 1

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

    def _hosts(self, region: int) -> range:
        here = self._run.state.regions[region]
        return range(int(here["first_host"]), int(here["first_host"] + here["hosts"]))

    def _pay(self) -> None:
        if self.paid:
            self.paid_s += np.array(self.paid[-1][1]) * (self._run.now - self._since)
        self._since = self._run.now

    def _note(self) -> None:
        self.paid.append((self._run.now, [scaler.replicas for scaler in self._scalers]))


def _keep(found: deque[tuple[float, T]], one: tuple[float, T], since: float) -> None:
    """Add the newest, and forget what is older than a moment."""
    found.append(one)
    while found[0][0] <= since:
        found.popleft()
