import asyncio
import time

import pytest

from routing.metrics.collector import Collector, make_collector
from routing.metrics.direct import DirectSource
from routing.metrics.oddities import Kind
from routing.metrics.regions import Regions
from routing.metrics.targets import Machine, targets

LONG_S = 60.0
"""For an answer that comes: a busy machine takes its time."""
SHORT_S = 0.5
"""For one that does not come."""

PAGE = """# HELP stillmotion_ready 1 when a warm-up animation has succeeded
# TYPE stillmotion_ready gauge
stillmotion_ready 1.0
# TYPE stillmotion_load gauge
stillmotion_load{service="animator"} 0.0
# TYPE stillmotion_busy_seconds_total counter
stillmotion_busy_seconds_total 12.5
# TYPE stillmotion_requests_total counter
stillmotion_requests_total{outcome="ok"} 5.0
stillmotion_requests_total{outcome="busy"} 50.0
bentoml_service_request_total{endpoint="/this is } no { text"
"""

EDGE = """envoy_cluster_upstream_rq_completed{envoy_cluster_name="jobs"} 7
envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="edge"} 2
envoy_server_uptime{} 5
"""


@pytest.fixture
def read(make_fleet):
    """One round of a source that asks these servers, each the GPU server or the edge of a region."""

    def once(machines, rounds=1, limit_s=LONG_S):
        fleet = make_fleet(1, 1, metrics={"time_limit_s": limit_s})

        async def ask():
            source = DirectSource(fleet, machines)
            try:
                return [await source.read() for _ in range(rounds)][-1]
            finally:
                await source.close()

        return asyncio.run(ask())

    return once


def machine(region, server, tier="gpu"):
    return Machine(region, tier, server.address)


def test_pages_are_read_and_only_what_is_wanted_of_them(read, fake_server):
    gpu, edge = fake_server((200, PAGE)), fake_server((200, EDGE))
    reading = read({machine("a", gpu): f"{gpu.url}/metrics", machine("a", edge, "edge"): f"{edge.url}/stats"})
    assert (reading.silences, reading.oddities) == ((), ())
    first, second = reading.pages
    assert first.total("stillmotion_busy_seconds_total") == 12.5
    assert first.total("stillmotion_requests_total", outcome="busy") == 50.0
    assert not list(first.each("bentoml_service_request_total"))
    assert second.total("envoy_http_downstream_rq_active", envoy_http_conn_manager_prefix="edge") == 2
    assert gpu.asked == ["/metrics"]
    assert edge.asked[0].startswith("/stats?filter=%5Ecluster")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("hang", Kind.LATE),
        ("drip", Kind.LATE),
        ("close", Kind.FAILED),
        ((500, "no"), Kind.FAILED),
        ((302, ""), Kind.FAILED),
        ((200, "stillmotion_ready one\n"), Kind.UNREADABLE),
        ((200, "#" * 5_000_000), Kind.UNREADABLE),
    ],
)
def test_a_machine_that_answers_badly_stalls_nothing_and_is_named(read, fake_server, answer, kind):
    bad, good = fake_server(answer), fake_server((200, PAGE))
    machines = {machine("a", bad): bad.url, machine("b", good): good.url}
    late = kind is Kind.LATE
    for _ in range(5 if late else 1):  # a busy machine may be late with the good one as well
        reading = read(machines, limit_s=SHORT_S if late else LONG_S)
        if reading.pages:
            break
    assert [page.machine.region for page in reading.pages] == ["b"]
    assert [(one.machine.region, one.kind) for one in reading.silences] == [("a", kind)]


def test_a_machine_where_nobody_listens_is_told_apart_from_one_that_is_silent(read, free_port):
    reading = read({Machine("a", "gpu", "gone"): f"http://127.0.0.1:{free_port}"})
    assert [one.kind for one in reading.silences] == [Kind.REFUSED]
    reading = read({Machine("a", "gpu", "gone"): f"http://localhost:{free_port}"})
    assert [one.kind for one in reading.silences] == [Kind.REFUSED]


def test_a_name_that_does_not_resolve_says_nothing_of_the_machine(read):
    reading = read({Machine("a", "gpu", "nowhere"): "http://nowhere.invalid:3000"}, limit_s=SHORT_S)
    assert reading.silences[0].kind in {Kind.FAILED, Kind.LATE}


def test_a_kept_connection_that_the_machine_closes_is_no_failure(read, fake_server):
    asked = []

    def answer(_):
        asked.append(1)
        return "close" if len(asked) % 2 == 0 else (200, PAGE)

    gpu = fake_server(answer)
    reading = read({machine("a", gpu): gpu.url}, rounds=2)
    assert reading.silences == ()
    assert len(gpu.asked) == 3


def test_a_bad_value_is_named_with_its_machine_and_the_rest_of_the_page_counts(read, fake_server):
    gpu = fake_server((200, PAGE.replace("stillmotion_busy_seconds_total 12.5", "stillmotion_busy_seconds_total NaN")))
    reading = read({machine("a", gpu): gpu.url})
    assert [str(one) for one in reading.oddities] == [
        f"not_a_number a gpu {gpu.address} stillmotion_busy_seconds_total: is nan; taken as not there"
    ]
    assert reading.pages[0].total("stillmotion_ready") == 1.0


def test_a_collector_finds_its_machines_in_the_fleet_file(make_fleet, fake_server):
    servers = {"gpu": fake_server((200, PAGE)), "edge": fake_server((200, EDGE))}
    pages = {"gpu_servers": [servers["gpu"].url], "edges": [servers["edge"].url]}
    fleet = make_fleet(1, 0, metrics={"pages": {"a": pages}, "time_limit_s": LONG_S}, stale_after_s=2 * LONG_S)

    async def collect():
        collector = make_collector(fleet)
        try:
            return [await collector.collect() for _ in range(2)]
        finally:
            await collector.close()

    seen = asyncio.run(collect())[-1]
    assert seen.oddities == ()
    assert seen.regions["a"].gpus_ready == 1
    assert (seen.regions["b"].demand_rps, seen.regions["b"].capacity_rps) == (0.0, 0.0)
    assert [server.asked[0].split("?")[0] for server in servers.values()] == ["/metrics", "/stats/prometheus"]


def test_a_round_with_many_machines_of_which_half_hang_takes_no_longer_than_the_limit(make_fleet, fake_server):
    good, bad = fake_server((200, PAGE)), fake_server("hang")
    fleet = make_fleet(40, metrics={"time_limit_s": 1.0})
    found = {Machine("a", "gpu", f"{i}:1"): f"{(bad if i % 2 else good).url}/{i}" for i in range(40)}

    async def collect():
        collector = Collector(DirectSource(fleet, found), Regions(fleet, found))
        try:
            began = time.monotonic()
            return await collector.collect(), time.monotonic() - began
        finally:
            await collector.close()

    for _ in range(5):  # a busy machine may be late with the good ones as well
        seen, took_s = asyncio.run(collect())
        if seen.regions["a"].gpus_missing == 20:
            break
    assert seen.regions["a"].gpus_missing == 20
    assert took_s < 10.0  # and not one after the other: that would be 20 s


def test_a_password_in_an_address_is_in_no_name(make_fleet):
    pages = {"gpu_servers": ["https://me:secret@gpu.example"], "edges": ["http://[fd00::1]:9901/stats/prometheus"]}
    found = targets(make_fleet(1, 0, metrics={"pages": {"a": pages}}))
    assert [str(one) for one in found] == ["a gpu gpu.example:443", "a edge [fd00::1]:9901"]
    assert list(found.values()) == ["https://me:secret@gpu.example/metrics", "http://[fd00::1]:9901/stats/prometheus"]


def test_machines_behind_one_address_are_told_apart_by_their_path(make_fleet):
    pages = {"gpu_servers": ["http://proxy:80/one/metrics", "http://proxy:80/two/metrics"]}
    found = targets(make_fleet(2, 0, metrics={"pages": {"a": pages}}))
    assert [one.address for one in found] == ["proxy:80", "proxy:80/two/metrics"]
