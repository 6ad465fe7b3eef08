"""The control loop in the loop: the very state machine that runs in production, on simulated time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..control.controller import Controller
from ..metrics.cost import Costs
from ..metrics.observation import Observation, RegionSeen
from .snapshot import Snapshot, take
from .state import VANISHED

if TYPE_CHECKING:
    from .run import Simulation

_METRIC = "gpu"


class ControlInTheLoop:
    """Rounds of the control loop, each of which sees the past and acts in the future.

    At t - `metrics_age_s` counters are read, at t the controller decides, at t + `publish_s` edges use it.

    Args:
        simulation: that it controls.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._run = simulation
        self._fleet = simulation.experiment.fleet
        self._settings = simulation.experiment.scenario.control
        self._controller = Controller.of(self._fleet)
        self._state = self._controller.start(simulation.rows.shares)
        self._costs = Costs(self._fleet.names, (_METRIC,), self._fleet.service_time_s)
        self._seen: deque[tuple[Snapshot, frozenset[str]]] = deque()
        self._before = simulation.snapshot()
        self._silent_since: dict[str, float] = {}

    def plan(self) -> None:
        """Have the rounds happen."""
        settings, end = self._settings, self._run.experiment.scenario.duration_s
        rounds = int(end / settings.interval_s)
        for i in range(1, rounds + 1):
            moment = i * settings.interval_s
            if any(one.at_s <= moment < (one.until_s or end) for one in settings.down):
                continue
            self._run.at(max(0.0, moment - settings.metrics_age_s), self._look)
            self._run.at(moment, self._decide)

    def _look(self) -> None:
        states = self._run.state.regions["state"]
        silent = frozenset(name for i, name in enumerate(self._fleet.names) if states[i] == VANISHED)
        self._seen.append((take(self._run.state, self._run.now, histograms=False), silent))

    def _decide(self) -> None:
        now = self._run.now
        observation = self._observe(*self._seen.popleft())
        self._state, decision = self._controller.step(self._state, observation, now)
        later = now + self._settings.publish_s
        if decision.changes:
            rows = decision.rows
            self._run.at(later, lambda: self._run.publish(rows))
        self._set_delays(decision.delays, later)

    def _set_delays(self, delays: Mapping[str, float], moment: float) -> None:
        self._run.at(moment, lambda: self._run.set_delays(delays))

    def _observe(self, seen: Snapshot, silent: frozenset[str]) -> Observation:
        before, self._before = self._before, seen
        over_s = seen.time_s - before.time_s
        if over_s <= 0:
            return Observation({})
        self._costs.forget(over_s)
        busy_s = (seen.busy_s - before.busy_s).tolist()
        ended = (seen.ended - before.ended).tolist()
        for i, name in enumerate(self._fleet.names):
            self._costs.add(name, {_METRIC: busy_s[i]}, ended[i])
        arrived = ((seen.arrived - before.arrived) / over_s).tolist()
        retried = ((seen.retried - before.retried) / over_s).tolist()
        regions = {}
        for i, name in enumerate(self._fleet.names):
            cost_s = self._costs.worst_s(name)
            ready = self._ready(name, int(seen.gpus[i]), seen.time_s, silent=name in silent)
            regions[name] = RegionSeen(
                demand_rps=arrived[i],
                over_s=over_s,
                retries_rps=retried[i],
                capacity_rps=None if ready is None else ready / cost_s,
                gpus_ready=ready,
                load={_METRIC: busy_s[i] / (ready * over_s)} if ready else {},
                cost_s=cost_s,
            )
        return Observation(regions)

    def _ready(self, name: str, gpus: int, now: float, *, silent: bool) -> int | None:
        """GPU servers that are known to be ready. Of a region that has vanished nothing is known at first, then
        that it is silent and answers no jobs: it counts as down.
        """
        if not silent:
            self._silent_since.pop(name, None)
            return gpus
        since = self._silent_since.setdefault(name, now)
        return 0 if now - since > self._fleet.stale_after_s else None
