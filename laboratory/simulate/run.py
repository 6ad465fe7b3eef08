"""A run: the compiled loop from one moment to the next at which something else happens."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

import numpy as np
from numpy.typing import NDArray

from routing.control.state import Shares
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan
from routing.retries import attempt_groups
from routing.schema import validated

from . import loop
from .build import build
from .compiled import key_of
from .control_adapter import ControlInTheLoop
from .demand import rates_of
from .scaling import Servers
from .scenario import HOME, LOOP, PLANNED, Experiment, Failure
from .state import REFUSES, UP, VANISHED, Snapshot, State, take, with_more_events, with_more_jobs

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass
class Outcome:
    """What a run leaves.

    Attributes:
        experiment, seed: what was run.
        warm: counters at the end of the warm-up.
        series: counters at the points of the time series, the first of which is 0 s.
        homes: {source: share that stays at home} at these points, by the table.
        last: counters when the last job had its end.
        tables: that were published, after the first.
        paid_s: seconds of servers that were paid, by region, where they come and go.
        spot_s: the part of it that spot servers are.
        paid: [(time, servers that are paid from then on, by region)], likewise.
        loop_s: processor time of the compiled loop.
        whole_s: processor time of the run, without compiling.
    """

    experiment: Experiment
    seed: int
    warm: Snapshot
    last: Snapshot
    series: list[Snapshot] = field(default_factory=list)
    homes: list[dict[str, float]] = field(default_factory=list)
    tables: int = 0
    paid_s: NDArray[np.float64] | None = None
    spot_s: NDArray[np.float64] | None = None
    paid: list[tuple[float, list[int]]] = field(default_factory=list)
    loop_s: float = 0.0
    whole_s: float = 0.0


class Simulation:
    """One run of an experiment.

    Args:
        experiment: what is run.
        seed: None: the scenario's.
    """

    def __init__(self, experiment: Experiment, seed: int | None = None) -> None:
        self.experiment = experiment
        self.seed = experiment.scenario.seed if seed is None else seed
        self.state: State = build(experiment, self.seed)
        self.now = 0.0
        self.loop_s = 0.0
        self._plans: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self.rows = Rows(experiment.fleet, self.seed)
        self.tables = -1
        self.publish(first_table(experiment))

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Do something at a moment, after all events of it; what is planned first happens first."""
        self._counter += 1
        heapq.heappush(self._plans, (moment, self._counter, action))

    def publish(self, table: Shares) -> None:
        """Edges use this table from now on."""
        self.tables += 1
        self.rows.shares = table
        self.rows.write(self.state)

    def set_delays(self, shares: Mapping[str, float]) -> None:
        """Edges delay these shares of the jobs from now on."""
        for i, name in enumerate(self.experiment.fleet.names):
            self.state.regions["delay_share"][i] = shares[name]

    def snapshot(self) -> Snapshot:
        """All counters, now."""
        return take(self.state, self.now)

    def run(self) -> Outcome:
        """From the first arrival until the last job has its end.

        Jobs stop to arrive at the scenario's end; what is under way then is seen to its end, so that each
        request is served or failed.
        """
        began = time.process_time()
        scenario = self.experiment.scenario
        self._advance(0.0)  # compiles, or reads what is compiled
        began += self.loop_s
        self.loop_s = 0.0
        outcome = Outcome(self.experiment, self.seed, self.snapshot(), self.snapshot())
        failures = Failures(self)
        failures.plan()
        servers = Servers(self, failures.kill_some) if scenario.scaling is not None else None
        if servers is not None:
            servers.plan()
        control = ControlInTheLoop(self) if scenario.table == LOOP else None
        if control is not None:
            control.plan()
        self._plan_series(outcome)
        if scenario.warm_up_s > 0:
            self.at(scenario.warm_up_s, lambda: setattr(outcome, "warm", self.snapshot()))
        while self._plans:
            moment = self._plans[0][0]
            if moment > scenario.duration_s:
                break
            self._advance(moment)
            heapq.heappop(self._plans)[2]()
        self._advance(scenario.duration_s)
        if servers is not None:
            servers.end()
            outcome.paid_s, outcome.spot_s, outcome.paid = servers.paid_s, servers.spot_s, servers.paid
        self._drain()
        outcome.last = self.snapshot()
        outcome.tables, outcome.loop_s = self.tables, self.loop_s
        outcome.whole_s = time.process_time() - began
        return outcome

    def _advance(self, moment: float) -> None:
        began = time.process_time()
        while (status := loop.run(self.state, moment)) != loop.DONE:
            more = with_more_events if status == loop.MORE_EVENTS else with_more_jobs
            self.state = more(self.state)
        self.now = moment
        self.loop_s += time.process_time() - began

    def _drain(self) -> None:
        """Nothing is planned any more but what is under way; each wait and computation has an end."""
        retry = self.experiment.fleet.retry
        step = max(self.experiment.times.mean_s, retry.max_interval_s, retry.delay.max_s)
        while self._under_way():
            self._advance(self.now + step)

    def _under_way(self) -> bool:
        scalars = self.state.scalars
        return bool(scalars["near"][0] + scalars["far"][0])

    def _plan_series(self, outcome: Outcome) -> None:
        scenario = self.experiment.scenario
        distance = scenario.series_s or scenario.duration_s / 100

        def look() -> None:
            outcome.series.append(self.snapshot())
            shares = self.rows.shares
            outcome.homes.append({name: shares[name].get(name, 0.0) for name in self.experiment.fleet.names})

        for moment in np.arange(0.0, scenario.duration_s * (1 + 1e-12), distance).tolist():
            self.at(min(moment, scenario.duration_s), look)


def simulate(experiment: Experiment, seed: int | None = None) -> Outcome:
    """Run an experiment once.

    Args:
        experiment: what is run.
        seed: None: the scenario's.
    """
    return Simulation(experiment, seed).run()


def first_table(experiment: Experiment) -> Shares:
    """What edges use until the control loop publishes: the scenario's, or what the planner makes of it."""
    fleet, kind = experiment.fleet, experiment.scenario.table
    if experiment.table is not None:
        return experiment.table.shares
    if kind == HOME:
        return {name: {name: 1.0} for name in fleet.names}
    assert kind in {LOOP, PLANNED}
    demand = {name: one.at(0.0) for name, one in rates_of(experiment).items()} if kind == PLANNED else {}
    capacity = {name: region.gpus / experiment.times.mean_s for name, region in fleet.regions.items()}
    wanted = {name: demand.get(name, 0.0) for name in fleet.names}
    load = validated(Load, {"demand_rps": wanted, "capacity_rps": capacity})
    return plan(fleet, load, generated_at=_EPOCH).shares


_TURNS = 4  # streams of draws; others are in `build`


class Rows:
    """The table, and which regions edges know to be dead.

    Args:
        fleet: whose regions they are.
        seed: of the turns at which rotations begin.

    Attributes:
        shares: the table as published.
        dead: regions that edges send nothing to.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet, self._seed = fleet, seed
        self._index = {name: i for i, name in enumerate(fleet.names)}
        self._written = 0
        self.shares: Shares = {}
        self.dead: set[str] = set()

    def write(self, state: State) -> None:
        """Make all edges use it. Their rotations begin anew, each anywhere in its turn (Envoy draws the number of
        its first picks).
        """
        self._written += 1
        for source, i in self._index.items():
            groups = self._alive(source)
            state.row_lengths[:, i] = 0
            for group, row in enumerate(groups[: state.rows.shape[0]]):
                total = sum(row.values())
                places = []
                for to, share in row.items():
                    key = key_of(self._seed, _TURNS, self._written, i, self._index[to])
                    part = share / total
                    places.append((int(key >> 11) * 2.0**-53 / part, self._index[to], part))
                places.sort()  # a heap by the time they are due
                state.row_lengths[group, i] = len(places)
                for k, (due, to_index, part) in enumerate(places):
                    state.rows[group, i, k] = (to_index, part, due)

    def _alive(self, source: str) -> list[dict[str, float]]:
        """The groups of attempts without dead regions, and without groups of which none is alive."""
        found = []
        for group in attempt_groups(self._fleet, source, self.shares[source]):
            alive = {to: share for to, share in group.items() if share > 0 and self._is_alive(to)}
            if alive:
                found.append(alive)
        return found

    def _is_alive(self, name: str) -> bool:
        # A dispatcher without GPU servers is never ready.
        return name not in self.dead and self._fleet.regions[name].gpus > 0


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
            run.at(failure.at_s, lambda: dead.extend(self.kill_some(region, count)))
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
            at["gpus"], at["free"], at["doomed"], at["leaving"] = 0, 0, 0, 0

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
            one["next"], one["until"] = scalars["free_job"][0], 0.0
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

    def kill_some(self, region: int, count: int) -> list[int]:
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
