import math

import pytest

from routing.fleet import Fleet
from routing.metrics import proxies
from routing.metrics.observation import Page, Reading, ScrapeProblem, Target, checked
from routing.metrics.regions import Regions


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


class Proxies:
    """A fleet's proxies as counters that a test moves, and the pages that they show."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.dispatchers = {
            Target(name, "dispatcher", f"{name}-dispatcher:9902"): {
                "up": float(region.gpus),
                "busy": 0.0,
                "queue": 0.0,
                "answers": 0.0,
                "refused": 0.0,
                "uptime": 0.0,
            }
            for name, region in fleet.regions.items()
            if region.gpus
        }
        self.edges = {
            Target(name, "edge", f"{name}-edge:9901"): {
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

    def dispatcher(self, region):
        return Target(region, "dispatcher", f"{region}-dispatcher:9902")

    def edge(self, region):
        return Target(region, "edge", f"{region}-edge:9901")

    def work(self, seconds, demand, busy=2.0, retries=0.0):
        """Let time pass: each region's users send `demand` jobs per second, served at home by so many busy GPUs."""
        self.now += seconds
        for proxy, values in self.edges.items():
            jobs = demand.get(proxy.region, 0.0) * seconds
            values["completed"] += jobs
            values["served"][proxy.region] += jobs
            values["retries"] += retries * seconds
            values["uptime"] = 5 * math.floor(self.now / 5)
        for proxy, values in self.dispatchers.items():
            values["busy"] = busy
            values["answers"] += demand.get(proxy.region, 0.0) * seconds
            values["uptime"] = math.floor(self.now)

    def page(self, proxy, stamp=None):
        edge = proxy.tier == "edge"
        values = (self.edges if edge else self.dispatchers)[proxy]
        samples = edge_samples(proxy.region, values) if edge else dispatcher_samples(values)
        found = [checked(proxy, *sample) for sample in samples if sample[0] not in self.without]
        wrong = [one for one in found if isinstance(one, ScrapeProblem)]
        return Page(proxy, self.now, tuple(one for one in found if not isinstance(one, ScrapeProblem)), stamp), wrong

    def reading(self, stamped=False):
        pages, problems = [], []
        for proxy in (*self.dispatchers, *self.edges):
            if proxy not in self.silent:
                page, wrong = self.page(proxy, self.now if stamped else None)
                pages.append(page)
                problems += wrong
        failures = () if stamped else tuple(self.silent.values())
        return Reading(tuple(pages), failures, tuple(problems))


def dispatcher_samples(values):
    gpus = {"proxy": "gpus"}
    yield proxies.SERVERS_UP, gpus, values["up"]
    yield proxies.SESSIONS, gpus, values["busy"] + values["queue"]
    yield proxies.QUEUE, gpus, values["queue"]
    yield proxies.ANSWERS, {**gpus, "code": "2xx"}, values["answers"]
    yield proxies.ANSWERS, {**gpus, "code": "4xx"}, values["refused"]
    yield proxies.ANSWERS, {"proxy": "pages", "code": "2xx"}, 12345.0
    yield proxies.SERVERS_UP, {"proxy": "pages"}, 77.0
    yield proxies.DISPATCHER_UPTIME, {}, values["uptime"]


def edge_samples(region, values):
    jobs, edge = {"envoy_cluster_name": "jobs"}, {"envoy_http_conn_manager_prefix": "edge"}
    yield proxies.COMPLETED, jobs, values["completed"]
    yield proxies.COMPLETED, {"envoy_cluster_name": "pages"}, 12345.0
    yield proxies.RETRIES, jobs, values["retries"]
    yield proxies.ACTIVE, edge, values["active"]
    yield proxies.ACTIVE, {"envoy_http_conn_manager_prefix": "admin"}, 1.0
    yield proxies.GIVEN_UP, edge, values["given_up"]
    yield proxies.EDGE_UPTIME, {}, values["uptime"]
    for to, jobs_there in values["served"].items():
        labels = {**jobs, "source_region": region, "destination_region": to}
        yield proxies.BETWEEN_REGIONS, {**labels, "envoy_response_code_class": "2"}, jobs_there
        yield proxies.BETWEEN_REGIONS, {**labels, "envoy_response_code_class": "4"}, 777.0


@pytest.fixture(params=["pages", "prometheus"])
def watch(request, make_fleet):
    """Makes proxies of a fleet with so many GPUs in each region, and what observes them, by either source."""

    def start(*gpus, source=request.param, **more):
        fleet = make_fleet(*gpus, **more)
        known = Proxies(fleet)
        pages = source == "pages"
        regions = Regions(fleet, [*known.dispatchers, *known.edges] if pages else None)
        return known, lambda: regions.observe(known.reading(stamped=not pages), known.now)

    return start
