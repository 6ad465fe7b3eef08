"""A run: the compiled loop from one moment to the next at which something else happens."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from routing.control.smoothing import Shares
from routing.load import Load
from routing.planner import plan
from routing.schema import validated

from . import loop
from .build import build
from .control_adapter import ControlInTheLoop
from .demand import rates
from .experiment import Experiment
from .failures import Failures
from .scenario import HOME, LOOP, PLANNED
from .snapshot import Snapshot, take
from .state import State, with_more_events, with_more_jobs
from .table import Rows

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
        Failures(self).plan()
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
    demand = {name: one.at(0.0) for name, one in rates(experiment).items()} if kind == PLANNED else {}
    capacity = {name: region.gpus / experiment.times.mean_s for name, region in fleet.regions.items()}
    wanted = {name: demand.get(name, 0.0) for name in fleet.names}
    load = validated(Load, {"demand_rps": wanted, "capacity_rps": capacity})
    return plan(fleet, load, generated_at=_EPOCH).shares
