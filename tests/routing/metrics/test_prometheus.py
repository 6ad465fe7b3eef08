import asyncio
import re

import httpx
import pytest
import yaml

from routing.metrics.collector import Collector
from routing.metrics.oddities import Kind
from routing.metrics.prometheus import PrometheusSource
from routing.metrics.regions import Regions
from routing.metrics.scrape_config import scrape_config
from routing.metrics.targets import Machine, targets


class FakePrometheus:
    """Answers queries for time and for series, by a clock that the test sets."""

    def __init__(self):
        self.now = 1_800_000_000.0
        self.series = {}
        self.answer = None

    def put(self, name, value, stamp=None, **labels):
        self.series[name, tuple(sorted(labels.items()))] = (self.now if stamp is None else stamp, value)

    def gpu(self, region, number, busy, ok, stamp=None, **more):
        labels = {"instance": f"{region}-{number}:3000", "region": region, "job": "gpu", **more}
        self.put("stillmotion_ready", 1, stamp, **labels)
        self.put("stillmotion_load", 0, stamp, **labels)
        self.put("stillmotion_busy_seconds_total", busy, stamp, **labels)
        self.put("stillmotion_requests_total", ok, stamp, outcome="ok", **labels)

    def edge(self, region, completed, prefix="edge", stamp=None):
        labels = {"instance": f"{region}-{prefix}:9901", "region": region}
        self.put("envoy_cluster_upstream_rq_completed", completed, stamp, envoy_cluster_name="jobs", **labels)
        self.put("envoy_http_downstream_rq_active", 0, stamp, envoy_http_conn_manager_prefix=prefix, **labels)
        self.put("envoy_http_downstream_rq_active", 1, stamp, envoy_http_conn_manager_prefix="admin", **labels)
        self.put("envoy_server_uptime", self.now // 5 * 5, stamp, **labels)

    def __call__(self, request):
        if self.answer is not None:
            return self.answer
        query = request.url.params["query"]
        if query == "time()":
            return self._success("scalar", [self.now, str(self.now)])
        names, seconds = re.fullmatch(r'\{__name__=~"([^"]+)"\}\[(\d+)s\]', query).groups()
        result = [
            {"metric": {"__name__": name, **dict(labels)}, "values": [[stamp - 2, "0"], [stamp, str(value)]]}
            for (name, labels), (stamp, value) in self.series.items()
            if name in names.split("|") and stamp > self.now - int(seconds)
        ]
        return self._success("matrix", result)

    def _success(self, kind, result):
        return httpx.Response(200, json={"status": "success", "data": {"resultType": kind, "result": result}})


@pytest.fixture
def prometheus():
    return FakePrometheus()


@pytest.fixture
def start(make_fleet, prometheus):
    """A collector that asks the fake one; `now` is its own clock, which goes on by itself."""

    def begin(*gpus):
        fleet = make_fleet(*gpus)
        clock = {"now": 0.0}
        transport = httpx.MockTransport(prometheus)
        source = PrometheusSource(fleet, "http://prometheus:9090", transport, lambda: clock["now"])
        regions = Regions(fleet)

        def collect(now):
            clock["now"] = now
            return regions.observe(asyncio.run(source.read()), now)

        return collect

    return begin


def put_all(prometheus, busy, jobs, stamp=None):
    for number in range(2):
        prometheus.gpu("a", number, busy, jobs / 2, stamp)
    prometheus.edge("a", jobs, stamp=stamp)
    prometheus.edge("a", 999.0, prefix="ingress", stamp=stamp)


def test_series_become_the_same_pages_as_those_of_machines(start, prometheus):
    collect = start(2)
    put_all(prometheus, 10.0, 100.0)
    assert collect(0.0).oddities == ()
    prometheus.now += 2
    put_all(prometheus, 11.0, 106.0)
    seen = collect(2.0)
    assert seen.oddities == ()
    assert seen.regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)
    assert seen.regions["a"].load["gpu"] == pytest.approx(0.5, rel=0.01)
    assert seen.regions["a"].gpus_ready == 2


def test_between_two_scrapes_nothing_is_new_and_nothing_is_lost(start, prometheus):
    collect = start(2)
    put_all(prometheus, 10.0, 100.0)
    collect(0.0)
    prometheus.now += 2
    assert collect(2.0).regions["a"].demand_rps is None
    prometheus.now += 2
    put_all(prometheus, 12.0, 112.0)
    assert collect(4.0).regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)


def test_a_clock_that_is_set_changes_no_rate(start, prometheus):
    collect = start(2)
    put_all(prometheus, 10.0, 100.0)
    collect(0.0)
    for now, jump in ((2.0, 86_400.0), (4.0, -200_000.0)):
        prometheus.series.clear()
        prometheus.now += 2 + jump
        put_all(prometheus, 10.0 + now / 2, 100.0 + 3 * now)
        assert collect(now).regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)


def test_readings_from_the_future_are_named_and_do_not_count(start, prometheus):
    collect = start(2)
    put_all(prometheus, 10.0, 100.0, stamp=prometheus.now + 30)
    seen = collect(0.0)
    assert {one.kind for one in seen.oddities} == {Kind.FROM_THE_FUTURE, Kind.HALF_MISSING}
    assert seen.regions["a"].gpus_ready is None


def test_a_machine_that_is_no_longer_scraped_grows_stale(start, prometheus):
    collect = start(2)
    for now in range(0, 16, 2):
        prometheus.gpu("a", 0, now / 2, now)
        prometheus.edge("a", 2 * now)
        if now == 0:
            prometheus.gpu("a", 1, 0, 0)
        seen = collect(float(now))
        prometheus.now += 2
    assert seen.regions["a"].gpus_missing == 1


def test_a_series_that_the_last_scrape_no_longer_had_does_not_count(start, prometheus):
    collect = start(1)
    prometheus.gpu("a", 0, 1.0, 1.0)
    prometheus.now += 2
    prometheus.put("stillmotion_load", 0, instance="a-0:3000", region="a", job="gpu")
    assert Kind.NO_SERIES in {one.kind for one in collect(0.0).oddities}


def test_machines_of_no_region_are_named_and_left_out(start, prometheus):
    collect = start(2)
    prometheus.gpu("mars", 0, 1.0, 1.0)
    prometheus.put("stillmotion_ready", 1, instance="nowhere:3000")
    found = [str(one) for one in collect(0.0).oddities if one.kind is Kind.NO_REGION]
    assert found == [
        "no_region mars-0:3000 with 'mars': the label region names none of the fleet's; left out",
        "no_region nowhere:3000 with '': the label region names none of the fleet's; left out",
    ]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(503, text="starting"), Kind.UNREADABLE),
        (httpx.Response(200, text="<html>"), Kind.UNREADABLE),
        (httpx.Response(200, json={"status": "error", "error": "too many samples"}), Kind.UNREADABLE),
        (httpx.Response(200, json={"status": "success", "data": {"result": [{"metric": {}}]}}), Kind.UNREADABLE),
        (httpx.Response(200, json=[1, 2]), Kind.UNREADABLE),
    ],
)
def test_a_prometheus_that_answers_badly_is_named_and_all_is_as_if_silent(start, prometheus, answer, kind):
    prometheus.answer = answer
    seen = start(2)(0.0)
    assert (kind, "prometheus prometheus:9090") in {(one.kind, one.where) for one in seen.oddities}
    assert seen.regions["a"].demand_rps is None


def test_a_prometheus_that_is_down_or_hangs_is_named_within_the_limit(make_fleet, fake_server, free_port):
    async def collect(url, limit_s):
        fleet = make_fleet(1, metrics={"time_limit_s": limit_s}, stale_after_s=120.0)
        collector = Collector(PrometheusSource(fleet, url), Regions(fleet))
        try:
            return await collector.collect()
        finally:
            await collector.close()

    # One that hangs does so for much longer than this waits.
    assert Kind.LATE in {one.kind for one in asyncio.run(collect(fake_server("hang").url, 0.3)).oddities}
    assert Kind.FAILED in {one.kind for one in asyncio.run(collect(f"http://127.0.0.1:{free_port}", 60.0)).oddities}


def test_a_scrape_configuration_has_each_machine_with_its_region(make_fleet):
    pages = {
        "a": {"gpu_servers": ["http://10.0.0.1:3000", "http://10.0.0.2:3000"], "edges": ["http://10.0.0.3:9901"]},
        "b": {"gpu_servers": ["https://gpu.example/own/metrics"], "edges": []},
    }
    content = yaml.safe_load(yaml.safe_dump(scrape_config(targets(make_fleet(2, 1, metrics={"pages": pages})), 2.5)))
    intervals = ("scrape_interval", "scrape_timeout", "evaluation_interval")
    assert content["global"] == dict.fromkeys(intervals, "2500ms")
    jobs = content["scrape_configs"]
    assert len({job["job_name"] for job in jobs}) == 3
    found = {
        Machine(static["labels"]["region"], job["job_name"].split("-")[1], static["targets"][0]): job["metrics_path"]
        for job in jobs
        for static in job["static_configs"]
    }
    assert found == {
        Machine("a", "gpu", "10.0.0.1:3000"): "/metrics",
        Machine("a", "gpu", "10.0.0.2:3000"): "/metrics",
        Machine("a", "edge", "10.0.0.3:9901"): "/stats/prometheus",
        Machine("b", "gpu", "gpu.example"): "/own/metrics",
    }
