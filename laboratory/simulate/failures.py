"""Deaths and returns of GPU servers and regions, and when edges know of them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from .scenario import Failure
from .state import REFUSES, UP, VANISHED

if TYPE_CHECKING:
    from .run import Simulation


class Failures:
    """The failures of a scenario.

    Args:
        simulation: that they happen to.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._run = simulation
        self._index = {name: i for i, name in enumerate(simulation.experiment.fleet.names)}
        # Mersenne Twister, whose integers are the same on all machines; failures are few.
        self._random = Random(simulation.seed)  # noqa: S311  # no secret

    def plan(self) -> None:
        """Have them happen."""
        for failure in self._run.experiment.scenario.failures:
            self._plan(failure)

    def _plan(self, failure: Failure) -> None:
        run, region = self._run, self._index[failure.region]
        back = failure.until_s
        if failure.slowness != 1.0:
            run.at(failure.at_s, lambda: self._set_slowness(region, failure.slowness))
            if back is not None:
                run.at(back, lambda: self._set_slowness(region, 1.0))
            return
        if failure.gpus is not None:
            count = failure.gpus
            dead: list[int] = []
            run.at(failure.at_s, lambda: dead.extend(self._kill_some(region, count)))
            if back is not None:
                run.at(back, lambda: self._revive(region, dead))
            return
        known_s = run.experiment.scenario.proxies.detection_s
        run.at(failure.at_s, lambda: self._kill_all(region, VANISHED if failure.vanishes else REFUSES))
        run.at(failure.at_s + known_s, lambda: self._know(failure.region, dead=True))
        if back is not None:
            run.at(back, lambda: self._revive_all(region))
            run.at(back + known_s, lambda: self._know(failure.region, dead=False))

    def _set_slowness(self, region: int, factor: float) -> None:
        self._run.state.regions["slowness"][region] = factor

    def _know(self, name: str, *, dead: bool) -> None:
        rows = self._run.rows
        rows.dead = rows.dead | {name} if dead else rows.dead - {name}
        rows.write(self._run.state)

    def _hosts(self, region: int) -> range:
        here = self._run.state.regions[region]
        return range(int(here["first_host"]), int(here["first_host"] + here["hosts"]))

    def _count_busy(self, region: int) -> None:
        here = self._run.state.regions[region]
        here["busy_s"] += here["busy"] * (self._run.now - here["busy_at"])
        here["busy_at"] = self._run.now

    def _kill_all(self, region: int, how: int) -> None:
        """The whole region: its computations end here, and so do the jobs that wait at its dispatchers."""
        state = self._run.state
        self._count_busy(region)
        here = state.regions[region]
        here["lost"] += here["busy"]
        here["busy"], here["gpus"], here["state"] = 0, 0, how
        for host in self._hosts(region):
            self._lose_waiting(region, host)
            at = state.hosts[host]
            at["epoch"] += 1
            at["gpus"], at["free"], at["doomed"] = 0, 0, 0

    def _lose_waiting(self, region: int, host: int) -> None:
        """Jobs that wait at a dispatcher without a GPU: accepted, and lost."""
        state = self._run.state
        at, scalars = state.hosts[host], state.scalars
        while at["waiting"] > 0:
            job = int(at["first"])
            one = state.jobs[job]
            at["first"], at["waiting"] = one["next"], at["waiting"] - 1
            state.regions[region]["lost"] += 1
            state.served_flow[int(one["source"]), region] += 1
            state.attempts_taken[int(one["source"]), int(one["attempt"])] += 1
            one["next"] = scalars["free_job"][0]
            scalars["free_job"][0] = job
            scalars["jobs"][0] -= 1

    def _revive_all(self, region: int) -> None:
        run = self._run
        region_of = list(run.experiment.fleet.regions.values())[region]
        hosts = self._hosts(region)
        run.state.regions[region]["gpus"], run.state.regions[region]["state"] = region_of.gpus, UP
        for k, host in enumerate(hosts):
            gpus = region_of.gpus // len(hosts) + (k < region_of.gpus % len(hosts))
            run.state.hosts[host]["gpus"], run.state.hosts[host]["free"] = gpus, gpus

    def _kill_some(self, region: int, count: int) -> list[int]:
        """So many GPU servers, each as likely: their hosts. Those that computed lose their jobs."""
        state, hosts, dead = self._run.state, self._hosts(region), []
        self._count_busy(region)
        here = state.regions[region]
        for _ in range(min(count, int(here["gpus"]))):
            left = self._random.randrange(int(here["gpus"]))
            for host in hosts:
                at = state.hosts[host]
                if left < at["gpus"]:
                    break
                left -= int(at["gpus"])
            if left < at["gpus"] - at["free"]:
                at["doomed"] += 1
                here["busy"] -= 1
                here["lost"] += 1
            else:
                at["free"] -= 1
            at["gpus"] -= 1
            here["gpus"] -= 1
            if at["gpus"] == 0:
                self._lose_waiting(region, host)
            dead.append(host)
        return dead

    def _revive(self, region: int, hosts: list[int]) -> None:
        state = self._run.state
        for host in hosts:
            state.hosts[host]["gpus"] += 1
            state.hosts[host]["free"] += 1
            state.regions[region]["gpus"] += 1
