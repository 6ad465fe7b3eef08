import math

import pytest

from routing.fleet import Fleet
from routing.metrics import edges, servers
from routing.metrics.oddities import Oddity
from routing.metrics.reading import Page, Reading, sound
from routing.metrics.regions import Regions
from routing.metrics.targets import Machine


@pytest.fixture
def make_fleet():
    """Makes a fleet of regions a, b, ... 20 ms apart, with so many GPUs each and jobs of half a second."""

    def make(*gpus, **more):
        names = "abcdefgh"[: len(gpus)]
        return Fleet.model_validate(
            {
                "regions": {name: {"gpus": count} for name, count in zip(names, gpus, strict=True)},
                "latency_ms": {one: {two: 20 for two in names if two > one} for one in names[:-1]},
                "service_time_s": 0.5,
                "rings_ms": [50],
                "thresholds": [{"load": 0.75, "ring": 1}],
                "target_load": 0.75,
                "stale_after_s": 10,
                **more,
            }
        )

    return make


class Machines:
    """A fleet's machines as counters that a test moves, and the pages that they show."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.gpus = {
            Machine(name, "gpu", f"{name}-{i}:3000"): {
                "ready": 1.0,
                "load": 0.0,
                "busy": 0.0,
                "ok": 0.0,
                "busy_429": 0.0,
            }
            for name, region in fleet.regions.items()
            for i in range(region.gpus)
        }
        self.edges = {
            Machine(name, "edge", f"{name}-edge:9901"): {
                "completed": 0.0,
                "active": 0.0,
                "retries": 0.0,
                "given_up": 0.0,
                "uptime": 0.0,
                "served": dict.fromkeys(fleet.regions, 0.0),
            }
            for name in fleet.regions
        }
        self.now = 1000.0
        self.silent = {}
        self.without = set()

    def gpu(self, region, number=0):
        return Machine(region, "gpu", f"{region}-{number}:3000")

    def edge(self, region):
        return Machine(region, "edge", f"{region}-edge:9901")

    def work(self, seconds, demand, load=0.5, retries=0.0):
        """Let time pass: each region's users send `demand` jobs per second, served at home."""
        self.now += seconds
        for machine, values in self.edges.items():
            jobs = demand.get(machine.region, 0.0) * seconds
            values["completed"] += jobs
            values["served"][machine.region] += jobs
            values["retries"] += retries * seconds
            values["uptime"] = 5 * math.floor(self.now / 5)
        for machine, values in self.gpus.items():
            region = self.fleet.regions[machine.region]
            values["busy"] += load * seconds
            values["ok"] += demand.get(machine.region, 0.0) * seconds / region.gpus

    def page(self, machine, stamp=None):
        values = (self.gpus if machine.tier == "gpu" else self.edges)[machine]
        samples = gpu_samples(values) if machine.tier == "gpu" else edge_samples(machine.region, values)
        found = [sound(machine, *sample) for sample in samples if sample[0] not in self.without]
        odd = [one for one in found if isinstance(one, Oddity)]
        return Page(machine, self.now, tuple(one for one in found if not isinstance(one, Oddity)), stamp), odd

    def reading(self):
        pages, odd = [], []
        for machine in (*self.gpus, *self.edges):
            if machine not in self.silent:
                page, wrong = self.page(machine)
                pages.append(page)
                odd += wrong
        return Reading(tuple(pages), tuple(self.silent.values()), tuple(odd))


def gpu_samples(values):
    yield servers.READY, {}, values["ready"]
    yield servers.LOAD, {}, values["load"]
    yield servers.BUSY, {}, values["busy"]
    yield servers.REQUESTS, {"outcome": "ok"}, values["ok"]
    yield servers.REQUESTS, {"outcome": "busy"}, values["busy_429"]


def edge_samples(region, values):
    jobs, edge = {"envoy_cluster_name": "jobs"}, {"envoy_http_conn_manager_prefix": "edge"}
    yield edges.COMPLETED, jobs, values["completed"]
    yield edges.COMPLETED, {"envoy_cluster_name": "pages"}, 12345.0
    yield edges.RETRIES, jobs, values["retries"]
    yield edges.ACTIVE, edge, values["active"]
    yield edges.ACTIVE, {"envoy_http_conn_manager_prefix": "admin"}, 1.0
    yield edges.GIVEN_UP, edge, values["given_up"]
    yield edges.UPTIME, {}, values["uptime"]
    for to, jobs_there in values["served"].items():
        labels = {**jobs, "source_region": region, "destination_region": to}
        yield edges.BETWEEN_REGIONS, {**labels, "envoy_response_code_class": "2"}, jobs_there
        yield edges.BETWEEN_REGIONS, {**labels, "envoy_response_code_class": "4"}, 777.0


@pytest.fixture
def watch(make_fleet):
    """Makes machines of a fleet with so many GPUs in each region, and what observes them."""

    def start(*gpus, **more):
        fleet = make_fleet(*gpus, **more)
        machines = Machines(fleet)
        regions = Regions(fleet, [*machines.gpus, *machines.edges])
        return machines, lambda: regions.observe(machines.reading(), machines.now)

    return start
