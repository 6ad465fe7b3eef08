"""The control loop on simulated time: pages of simulated proxies, read and judged by what runs in production.

`Regions` and `Controller` are the loop's own; only the pages are made here, as HAProxy and Envoy would give them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from routing.control.controller import Controller
from routing.metrics.observation import Kind, Page, Reading, Sample, ScrapeFailure, Target
from routing.metrics.proxies import (
    ACTIVE,
    ANSWERS,
    BETWEEN_REGIONS,
    COMPLETED,
    DISPATCHER_UPTIME,
    EDGE_UPTIME,
    GPUS,
    QUEUE,
    RETRIES,
    SERVERS_UP,
    SESSIONS,
    UPTIME_STEP_S,
)
from routing.metrics.regions import Regions

from .state import VANISHED, Counts, Snapshot, take

if TYPE_CHECKING:
    from .run import Simulation


class ControlInTheLoop:
    """Rounds of the control loop, each of which sees the past and acts in the future.

    At t - `metrics_age_s` pages are made, at t the controller decides, at t + `publish_s` edges use it.

    Args:
        simulation: that it controls.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._run = simulation
        self._fleet = simulation.experiment.fleet
        self._settings = simulation.experiment.scenario.control
        self._by_pages = self._settings.metrics == "pages"
        self._controller = Controller(self._fleet)
        self._state = self._controller.start(simulation.rows.shares)
        self._dispatchers = {name: Target(name, "dispatcher", f"dispatcher-{name}:9902") for name in self._fleet.names}
        self._edges = {name: Target(name, "edge", f"edge-{name}:9901") for name in self._fleet.names}
        proxies = [*self._dispatchers.values(), *self._edges.values()]
        self._regions = Regions(self._fleet, proxies if self._by_pages else None)
        self._read: deque[tuple[Reading, float]] = deque()
        self._look()
        self._regions.observe(*self._read.popleft())

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
        state, now = self._run.state, self._run.now
        waiting = np.zeros(len(self._fleet.names), np.int64)
        np.add.at(waiting, state.hosts["region"], state.hosts["waiting"])
        vanished = state.regions["state"] == VANISHED
        self._read.append((self._reading(take(state, now, histograms=False), waiting, vanished.tolist()), now))

    def _decide(self) -> None:
        now = self._run.now
        observation = self._regions.observe(*self._read.popleft())
        self._state, decision = self._controller.step(self._state, observation, now)
        later = now + self._settings.publish_s
        if decision.changes:
            rows = decision.rows
            self._run.at(later, lambda: self._run.publish(rows))
        self._set_delays(decision.delays, later)

    def _set_delays(self, delays: Mapping[str, float], moment: float) -> None:
        self._run.at(moment, lambda: self._run.set_delays(delays))

    def _reading(self, seen: Snapshot, waiting: Counts, vanished: list[bool]) -> Reading:
        pages: list[Page] = []
        failures: list[ScrapeFailure] = []
        for i, name in enumerate(self._fleet.names):
            stamp = None if self._by_pages else seen.time_s
            pages.append(Page(self._edges[name], seen.time_s, tuple(self._edge(seen, i)), stamp))
            dispatcher = self._dispatchers[name]
            if not vanished[i]:
                samples = tuple(self._dispatcher(seen, i, float(waiting[i])))
                pages.append(Page(dispatcher, seen.time_s, samples, stamp))
            elif self._by_pages:  # a Prometheus just does not show it any more
                failures.append(ScrapeFailure(dispatcher, Kind.LATE, "no answer"))
        return Reading(tuple(pages), tuple(failures))

    def _dispatcher(self, seen: Snapshot, i: int, waiting: float) -> Iterator[Sample]:
        gpus = {"proxy": GPUS}
        yield Sample(SERVERS_UP, gpus, float(seen.gpus[i]))
        yield Sample(SESSIONS, gpus, float(seen.busy[i]) + waiting)
        yield Sample(QUEUE, gpus, waiting)
        yield Sample(ANSWERS, {**gpus, "code": "2xx"}, float(seen.ended[i]))
        yield Sample(DISPATCHER_UPTIME, {}, seen.time_s)

    def _edge(self, seen: Snapshot, i: int) -> Iterator[Sample]:
        jobs = {"envoy_cluster_name": "jobs"}
        yield Sample(COMPLETED, jobs, float(seen.arrived[i]))
        yield Sample(ACTIVE, {"envoy_http_conn_manager_prefix": "edge"}, 0.0)
        yield Sample(RETRIES, jobs, float(seen.retried[i]))
        yield Sample(EDGE_UPTIME, {}, seen.time_s - seen.time_s % UPTIME_STEP_S)
        for to, served in zip(self._fleet.names, seen.served_flow[i].tolist(), strict=True):
            if served:
                labels = {**jobs, "destination_region": to, "envoy_response_code_class": "2"}
                yield Sample(BETWEEN_REGIONS, labels, float(served))
