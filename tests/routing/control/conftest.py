from dataclasses import dataclass, field
from math import exp

import pytest

from routing.control.controller import Controller
from routing.control.state import NO_ORDERS, Orders
from routing.fleet import Fleet
from routing.metrics.observation import Observation, RegionSeen
from routing.metrics.regions import Costs


@pytest.fixture(scope="session")
def make_fleet():
    """Makes a fleet of regions a, b, c, ... in a line, 20 ms from each to the next, with so many GPUs each."""

    def make(*gpus, **more):
        names = "abcdefgh"[: len(gpus)]
        return Fleet.model_validate(
            {
                "regions": {name: {"gpus": count} for name, count in zip(names, gpus, strict=True)},
                "latency_ms": {
                    one: {two: 20.0 * (names.index(two) - names.index(one)) for two in names if two > one}
                    for one in names[:-1]
                },
                "service_time_s": 0.5,
                "rings_ms": [25, 50, 200],
                "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}, {"load": 0.95, "ring": 3}],
                "target_load": 0.75,
                **more,
            }
        )

    return make


@dataclass
class Fluid:
    """A fleet as a fluid, and the loop around it: jobs are a flow, and load follows it with the service time.

    Attributes:
        demand, capacity: jobs per second by region; a test changes them as it goes.
        silent: regions of which nothing is observed.
        orders: of operators.
        noise: makes of a mean number of jobs the number that came; None: the mean itself.
    """

    fleet: Fleet
    demand: dict
    interval_s: float = 2.0
    silent: set = field(default_factory=set)
    noise: object = None
    orders: Orders = NO_ORDERS
    now: float = 500.0

    def __post_init__(self):
        self.controller = Controller(self.fleet)
        self.state = self.controller.start(self.controller.at_home().shares)
        self.ready = {name: region.gpus for name, region in self.fleet.regions.items()}
        self.load = dict.fromkeys(self.fleet.names, 0.0)
        self.costs = Costs(self.fleet.names, self.fleet.service_time_s)
        self.decisions, self.history = [], []

    def arriving(self, region):
        return sum(row.get(region, 0.0) * self.demand[source] for source, row in self.state.rows.items())

    def run(self, seconds, change=None):
        """Go on for so long; `change(t)` is called before each round."""
        start = self.now
        while self.now < start + seconds - 1e-9:
            if change is not None:
                change(self.now - start)
            self._flow()
            self.now += self.interval_s
            self.state, decision = self.controller.step(self.state, self._observe(), self.now, self.orders)
            self.decisions.append(decision)
            self.history.append({source: dict(row) for source, row in self.state.rows.items()})
        return self

    def changed(self):
        """Rounds in which the table changed."""
        return sum(bool(decision.changes) for decision in self.decisions)

    def home(self, region):
        """Share that stays at home, round by round."""
        return [rows[region].get(region, 0.0) for rows in self.history]

    def _flow(self):
        self.costs.forget(self.interval_s)
        for name, ready in self.ready.items():
            if not ready:
                self.load[name] = 0.0
                continue
            served = min(self.arriving(name), ready / self.fleet.service_time_s)
            lag = exp(-self.interval_s / self.fleet.service_time_s)
            self.load[name] = served * self.fleet.service_time_s / ready * (1 - lag) + self.load[name] * lag
            self.costs.add(name, self.load[name] * ready * self.interval_s, served * self.interval_s)

    def _observe(self):
        regions = {}
        for name in self.fleet.names:
            if name in self.silent:
                continue
            jobs = self.demand[name] * self.interval_s
            jobs = jobs if self.noise is None else self.noise(jobs)
            cost_s = self.costs.cost_s(name)
            regions[name] = RegionSeen(
                demand_rps=jobs / self.interval_s,
                over_s=self.interval_s,
                retries_rps=0.0,
                capacity_rps=self.ready[name] / cost_s,
                gpus_ready=self.ready[name],
                load=self.load[name],
                cost_s=cost_s,
            )
        return Observation(regions)


@pytest.fixture
def fluid(make_fleet):
    """Makes a fluid fleet: GPUs by region, and demand as a share of each region's capacity."""

    def make(gpus, shares, **more):
        fleet = make_fleet(*gpus, **more)
        demand = {name: share * fleet.capacity_rps(name) for name, share in zip(fleet.names, shares, strict=True)}
        return Fluid(fleet, demand)

    return make
