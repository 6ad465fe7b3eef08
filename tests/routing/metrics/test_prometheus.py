import asyncio
import re

import httpx
import pytest
import yaml

from routing.metrics.observation import Kind, Target
from routing.metrics.pages import Collector, targets
from routing.metrics.prometheus import PrometheusSource, scrape_config
from routing.metrics.regions import Regions
from routing.metrics.settings import PrometheusServer


class FakePrometheus:
    """Answers queries for time and for series, by a clock that the test sets."""

    def __init__(self):
        self.now = 1_800_000_000.0
        self.series = {}
        self.answer = None

    def put(self, name, value, stamp=None, **labels):
        self.series[name, tuple(sorted(labels.items()))] = (self.now if stamp is None else stamp, value)

    def dispatcher(self, region, up, busy, answers, stamp=None, proxy="gpus", instance="same:9902"):
        labels = {"instance": instance, "region": region, "job": "dispatcher"}
        self.put("haproxy_backend_active_servers", up, stamp, proxy=proxy, **labels)
        self.put("haproxy_backend_current_sessions", busy, stamp, proxy=proxy, **labels)
        self.put("haproxy_backend_current_queue", 0, stamp, proxy=proxy, **labels)
        self.put("haproxy_backend_http_responses_total", answers, stamp, proxy=proxy, code="2xx", **labels)
        self.put("haproxy_process_uptime_seconds", self.now, stamp, **labels)

    def edge(self, region, completed, prefix="edge", stamp=None):
        # The same address in each region, as pods of different clusters may have.
        labels = {"instance": "same:9901" if prefix == "edge" else f"{prefix}:9901", "region": region}
        self.put("envoy_cluster_upstream_rq_completed", completed, stamp, envoy_cluster_name="jobs", **labels)
        self.put("envoy_http_downstream_rq_active", 0, stamp, envoy_http_conn_manager_prefix=prefix, **labels)
        self.put("envoy_http_downstream_rq_active", 1, stamp, envoy_http_conn_manager_prefix="admin", **labels)
        self.put("envoy_server_uptime", self.now // 5 * 5, stamp, **labels)

    def __call__(self, request):
        self.headers = request.headers
        if self.answer is not None:
            return self.answer
        query = request.url.params["query"]
        if query == "time()":
            return self._success("scalar", [self.now, str(self.now)])
        names, more, seconds = re.fullmatch(r'\{__name__=~"([^"]+)",([^}]+)\}\[(\d+)s\]', query).groups()
        wanted = dict(re.findall(r'(\w+)=~"([^"]*)"', more))
        result = [
            {"metric": {"__name__": name, **dict(labels)}, "values": [[stamp - 2, "0"], [stamp, str(value)]]}
            for (name, labels), (stamp, value) in self.series.items()
            if name in names.split("|") and stamp > self.now - int(seconds)
            if all(re.fullmatch(pattern, dict(labels).get(label, "")) for label, pattern in wanted.items())
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
        server = PrometheusServer(url="http://prometheus:9090")
        source = PrometheusSource(fleet, server, transport=transport, clock=lambda: clock["now"])
        regions = Regions(fleet)

        def collect(now):
            clock["now"] = now
            return regions.observe(asyncio.run(source.read()), now)

        return collect

    return begin


def put_all(prometheus, jobs, stamp=None, up=2, busy=1.5):
    prometheus.dispatcher("a", up, busy, jobs, stamp)
    prometheus.dispatcher("a", 77, 77, jobs, stamp, proxy="pages")
    prometheus.edge("a", jobs, stamp=stamp)
    prometheus.edge("a", 999.0, prefix="istio", stamp=stamp)


def test_series_become_the_same_pages_as_those_of_proxies(start, prometheus):
    collect = start(2)
    put_all(prometheus, 100.0)
    assert collect(0.0).problems == ()
    prometheus.now += 2
    put_all(prometheus, 106.0)
    seen = collect(2.0)
    assert seen.problems == ()
    assert seen.regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)
    assert seen.regions["a"].load == pytest.approx(0.75)
    assert seen.regions["a"].gpus_ready == 2


def test_half_a_region_lost_is_seen_through_a_prometheus(start, prometheus):
    collect = start(40)
    for now, up in ((0.0, 40), (2.0, 15)):
        put_all(prometheus, 100.0 + 3 * now, up=up)
        seen = collect(now)
        prometheus.now += 2
        assert seen.regions["a"].gpus_ready == up
    assert seen.regions["a"].gpus_missing == 25


def test_proxies_of_the_same_address_in_two_regions_are_told_apart(start, prometheus):
    collect = start(2, 3)
    for jobs in (0.0, 6.0):
        put_all(prometheus, jobs)
        prometheus.dispatcher("b", 3, 0, 0)
        prometheus.edge("b", jobs * 2)
        seen = collect(jobs)
        prometheus.now += 2
    assert [one.gpus_ready for one in seen.regions.values()] == [2, 3]
    assert [one.demand_rps for one in seen.regions.values()] == pytest.approx([1.0, 2.0], rel=0.5)


def test_a_managed_prometheus_is_shown_its_token_password_and_tenant_which_may_change(make_fleet, prometheus, tmp_path):
    def asked(**more):
        server = PrometheusServer(url="http://prometheus:9090", **more)
        source = PrometheusSource(make_fleet(2), server, tmp_path, httpx.MockTransport(prometheus))
        return lambda: (asyncio.run(source.read()), prometheus.headers)

    (tmp_path / "secret").write_text("one\n")
    ask = asked(tenant="team-a", token_file="secret")  # noqa: S106  # a path
    assert ask()[1]["authorization"] == "Bearer one"
    assert prometheus.headers["x-scope-orgid"] == "team-a"
    (tmp_path / "secret").write_text("two")
    assert ask()[1]["authorization"] == "Bearer two"
    headers = asked(
        username="me",
        password_file="secret",  # noqa: S106  # a path
        tenant="x",
        tenant_header="THANOS-TENANT",
    )()[1]
    assert headers["authorization"] == "Basic bWU6dHdv"
    assert headers["thanos-tenant"] == "x"
    (tmp_path / "secret").unlink()
    problems = ask()[0].problems
    assert [one.kind for one in problems] == [Kind.FAILED]
    assert "secret: No such file or directory" in problems[0].text


def test_between_two_scrapes_nothing_is_new_and_nothing_is_lost(start, prometheus):
    collect = start(2)
    put_all(prometheus, 100.0)
    collect(0.0)
    prometheus.now += 2
    assert collect(2.0).regions["a"].demand_rps is None
    prometheus.now += 2
    put_all(prometheus, 112.0)
    assert collect(4.0).regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)


def test_a_clock_that_is_set_changes_no_rate(start, prometheus):
    collect = start(2)
    put_all(prometheus, 100.0)
    collect(0.0)
    for now, jump in ((2.0, 86_400.0), (4.0, -200_000.0)):
        prometheus.series.clear()
        prometheus.now += 2 + jump
        put_all(prometheus, 100.0 + 3 * now)
        assert collect(now).regions["a"].demand_rps == pytest.approx(3.0, rel=0.01)


def test_readings_from_the_future_are_named_and_do_not_count(start, prometheus):
    collect = start(2)
    put_all(prometheus, 100.0, stamp=prometheus.now + 30)
    seen = collect(0.0)
    assert {one.kind for one in seen.problems} == {Kind.FROM_THE_FUTURE}
    assert seen.regions["a"].gpus_ready is None


def test_a_series_that_the_last_scrape_no_longer_had_does_not_count(start, prometheus):
    collect = start(1)
    prometheus.dispatcher("a", 1, 0, 1)
    prometheus.now += 2
    prometheus.put("haproxy_backend_current_queue", 0, instance="same:9902", region="a", job="dispatcher", proxy="gpus")
    assert Kind.NO_SERIES in {one.kind for one in collect(0.0).problems}


def test_proxies_of_no_region_are_named_and_left_out(start, prometheus):
    collect = start(2)
    prometheus.dispatcher("mars", 1, 1, 1)
    prometheus.put("haproxy_backend_active_servers", 1, instance="nowhere:9902", proxy="gpus")
    found = [str(one) for one in collect(0.0).problems if one.kind is Kind.NO_REGION]
    assert found == [
        "no_region nowhere:9902 with '': the label region names none of the fleet's; left out",
        "no_region same:9902 with 'mars': the label region names none of the fleet's; left out",
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
    assert (kind, "prometheus prometheus:9090") in {(one.kind, one.where) for one in seen.problems}
    assert seen.regions["a"].demand_rps is None


def test_a_prometheus_that_is_down_or_hangs_is_named_within_the_limit(make_fleet, fake_server, free_port):
    async def collect(url, limit_s):
        fleet = make_fleet(1, metrics={"time_limit_s": limit_s}, stale_after_s=120.0)
        collector = Collector(PrometheusSource(fleet, PrometheusServer(url=url)), Regions(fleet))
        try:
            return await collector.collect()
        finally:
            await collector.close()

    # One that hangs does so for much longer than this waits.
    assert Kind.LATE in {one.kind for one in asyncio.run(collect(fake_server("hang").url, 0.3)).problems}
    assert Kind.FAILED in {one.kind for one in asyncio.run(collect(f"http://127.0.0.1:{free_port}", 60.0)).problems}


def test_a_scrape_configuration_has_each_proxy_with_its_region(make_fleet):
    pages = {
        "a": {"dispatchers": ["http://10.0.0.1:9902", "http://10.0.0.2:9902"], "edges": ["http://10.0.0.3:9901"]},
        "b": {"dispatchers": ["https://haproxy.example/own/metrics"], "edges": []},
    }
    content = yaml.safe_load(yaml.safe_dump(scrape_config(targets(make_fleet(2, 1, metrics={"pages": pages})), 2.5)))
    intervals = ("scrape_interval", "scrape_timeout", "evaluation_interval")
    assert content["global"] == dict.fromkeys(intervals, "2500ms")
    jobs = content["scrape_configs"]
    assert len({job["job_name"] for job in jobs}) == 3
    found = {
        Target(static["labels"]["region"], job["job_name"].split("-")[1], static["targets"][0]): job["metrics_path"]
        for job in jobs
        for static in job["static_configs"]
    }
    assert found == {
        Target("a", "dispatcher", "10.0.0.1:9902"): "/metrics",
        Target("a", "dispatcher", "10.0.0.2:9902"): "/metrics",
        Target("a", "edge", "10.0.0.3:9901"): "/stats/prometheus",
        Target("b", "dispatcher", "haproxy.example"): "/own/metrics",
    }
