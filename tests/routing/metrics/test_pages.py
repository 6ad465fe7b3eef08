import asyncio
import time
from pathlib import Path

import pytest

from routing.metrics.observation import Kind, Target
from routing.metrics.pages import PageSource, make_collector, read_samples, targets

LONG_S = 60.0
"""For an answer that comes: a busy machine takes its time."""
SHORT_S = 0.5
"""For one that does not come."""

PAGE = """# HELP haproxy_backend_current_queue Number of current queued requests in backend
# TYPE haproxy_backend_current_queue gauge
haproxy_backend_current_queue{proxy="gpus"} 3
haproxy_backend_current_sessions{proxy="gpus"} 7
haproxy_backend_active_servers{proxy="gpus"} 1
haproxy_backend_agg_server_status{proxy="gpus",state="MAINT"} 5
# TYPE haproxy_backend_http_responses_total counter
haproxy_backend_http_responses_total{proxy="gpus",code="2xx"} 5
haproxy_backend_http_responses_total{proxy="gpus",code="4xx"} 50
haproxy_backend_http_requests_total {this is no text
haproxy_process_uptime_seconds 12
"""

EDGE = """envoy_cluster_upstream_rq_completed{envoy_cluster_name="jobs"} 7
envoy_http_downstream_rq_active{envoy_http_conn_manager_prefix="edge"} 2
envoy_server_uptime{} 5
"""


@pytest.fixture
def read(make_fleet):
    """One round of a source that asks these servers, each the GPU server or the edge of a region."""

    def once(proxies, rounds=1, limit_s=LONG_S):
        fleet = make_fleet(1, 1, metrics={"time_limit_s": limit_s})

        async def ask():
            source = PageSource(fleet, proxies)
            try:
                return [await source.read() for _ in range(rounds)][-1]
            finally:
                await source.close()

        return asyncio.run(ask())

    return once


def proxy(region, server, tier="dispatcher"):
    return Target(region, tier, server.address)


def test_pages_are_read_and_only_what_is_wanted_of_them(read, fake_server):
    gpu, edge = fake_server((200, PAGE)), fake_server((200, EDGE))
    reading = read({proxy("a", gpu): f"{gpu.url}/metrics", proxy("a", edge, "edge"): f"{edge.url}/stats"})
    assert (reading.failures, reading.problems) == ((), ())
    first, second = reading.pages
    assert first.total("haproxy_backend_current_sessions", proxy="gpus") == 7
    assert first.total("haproxy_backend_http_responses_total", proxy="gpus", code="4xx") == 50
    assert not list(first.each("haproxy_backend_agg_server_status"))
    assert second.total("envoy_http_downstream_rq_active", envoy_http_conn_manager_prefix="edge") == 2
    assert gpu.asked == ["/metrics?scope=global&scope=backend"]
    assert edge.asked[0].startswith("/stats?filter=%5Ecluster")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("hang", Kind.LATE),
        ("drip", Kind.LATE),
        ("close", Kind.FAILED),
        ((500, "no"), Kind.FAILED),
        ((302, ""), Kind.FAILED),
        ((200, "haproxy_process_uptime_seconds one\n"), Kind.UNREADABLE),
        ((200, "#" * 5_000_000), Kind.UNREADABLE),
    ],
)
def test_a_machine_that_answers_badly_stalls_nothing_and_is_named(read, fake_server, answer, kind):
    bad, good = fake_server(answer), fake_server((200, PAGE))
    proxies = {proxy("a", bad): bad.url, proxy("b", good): good.url}
    late = kind is Kind.LATE
    for _ in range(5 if late else 1):  # a busy machine may be late with the good one as well
        reading = read(proxies, limit_s=SHORT_S if late else LONG_S)
        if reading.pages:
            break
    assert [page.proxy.region for page in reading.pages] == ["b"]
    assert [(one.proxy.region, one.kind) for one in reading.failures] == [("a", kind)]


def test_a_machine_where_nobody_listens_is_told_apart_from_one_that_is_silent(read, free_port):
    reading = read({Target("a", "dispatcher", "gone"): f"http://127.0.0.1:{free_port}"})
    assert [one.kind for one in reading.failures] == [Kind.REFUSED]
    reading = read({Target("a", "dispatcher", "gone"): f"http://localhost:{free_port}"})
    assert [one.kind for one in reading.failures] == [Kind.REFUSED]


def test_a_name_that_does_not_resolve_says_nothing_of_the_proxy(read):
    reading = read({Target("a", "dispatcher", "nowhere"): "http://nowhere.invalid:3000"}, limit_s=SHORT_S)
    assert reading.failures[0].kind in {Kind.FAILED, Kind.LATE}


def test_a_kept_connection_that_the_machine_closes_is_no_failure(read, fake_server):
    asked = []

    def answer(_):
        asked.append(1)
        return "close" if len(asked) % 2 == 0 else (200, PAGE)

    gpu = fake_server(answer)
    reading = read({proxy("a", gpu): gpu.url}, rounds=2)
    assert reading.failures == ()
    assert len(gpu.asked) == 3


def test_a_bad_value_is_named_with_its_machine_and_the_rest_of_the_page_counts(read, fake_server):
    gpu = fake_server((200, PAGE.replace('sessions{proxy="gpus"} 7', 'sessions{proxy="gpus"} NaN')))
    reading = read({proxy("a", gpu): gpu.url})
    assert [str(one) for one in reading.problems] == [
        f"not_a_number a dispatcher {gpu.address} haproxy_backend_current_sessions: is nan; taken as not there"
    ]
    assert reading.pages[0].total("haproxy_backend_active_servers") == 1.0


def test_a_collector_finds_its_proxies_in_the_fleet_file(make_fleet, fake_server):
    servers = {"dispatcher": fake_server((200, PAGE)), "edge": fake_server((200, EDGE))}
    pages = {"dispatchers": [servers["dispatcher"].url], "edges": [servers["edge"].url]}
    fleet = make_fleet(1, 0, metrics={"pages": {"a": pages}, "time_limit_s": LONG_S}, stale_after_s=2 * LONG_S)

    async def collect():
        collector = make_collector(fleet, Path())
        try:
            return [await collector.collect() for _ in range(2)]
        finally:
            await collector.close()

    seen = asyncio.run(collect())[-1]
    assert seen.problems == ()
    assert seen.regions["a"].gpus_ready == 1
    assert (seen.regions["b"].demand_rps, seen.regions["b"].capacity_rps) == (0.0, 0.0)
    assert [server.asked[0].split("?")[0] for server in servers.values()] == ["/metrics", "/stats/prometheus"]


def test_a_round_with_many_proxies_of_which_half_hang_takes_no_longer_than_the_limit(make_fleet, fake_server):
    good, bad = fake_server((200, PAGE)), fake_server("hang")
    fleet = make_fleet(40, metrics={"time_limit_s": 1.0})
    found = {Target("a", "dispatcher", f"{i}:1"): f"{(bad if i % 2 else good).url}/{i}" for i in range(40)}

    async def collect():
        source = PageSource(fleet, found)
        try:
            began = time.monotonic()
            return await source.read(), time.monotonic() - began
        finally:
            await source.close()

    for _ in range(5):  # a busy machine may be late with the good ones as well
        reading, took_s = asyncio.run(collect())
        if len(reading.pages) == 20:
            break
    assert len(reading.pages) == 20
    assert {one.kind for one in reading.failures} == {Kind.LATE}
    assert took_s < 10.0  # and not one after the other: that would be 20 s


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        ("x 1", {}, 1.0),
        ("x{} 1e3", {}, 1000.0),
        ('x{a="b",c="d"} 2 1700000000000', {"a": "b", "c": "d"}, 2.0),
        ('x{a="b } c\\" d",} +Inf', {"a": 'b } c\\" d'}, float("inf")),
    ],
)
def test_lines_of_prometheus_text_are_read(line, labels, value):
    assert list(read_samples(f"# HELP x\n{line}\nxy 3\n", {"x"})) == [("x", labels, value)]


@pytest.mark.parametrize("line", ["x", "x one", 'x{a="b} 1', "x{a=1} 1", "x 1 2 3", "x{"])
def test_a_wanted_line_that_is_malformed_is_an_error(line):
    with pytest.raises(ValueError, match=r"cannot be read: x|one"):
        list(read_samples(line, {"x"}))


def test_a_password_in_an_address_is_in_no_name(make_fleet):
    pages = {"dispatchers": ["https://me:secret@gpu.example"], "edges": ["http://[fd00::1]:9901/stats/prometheus"]}
    found = targets(make_fleet(1, 0, metrics={"pages": {"a": pages}}))
    assert [str(one) for one in found] == ["a dispatcher gpu.example:443", "a edge [fd00::1]:9901"]
    assert list(found.values()) == ["https://me:secret@gpu.example/metrics", "http://[fd00::1]:9901/stats/prometheus"]


def test_proxies_behind_one_address_are_told_apart_by_their_path(make_fleet):
    pages = {"dispatchers": ["http://proxy:80/one/metrics", "http://proxy:80/two/metrics"]}
    found = targets(make_fleet(2, 0, metrics={"pages": {"a": pages}}))
    assert [one.address for one in found] == ["proxy:80", "proxy:80/two/metrics"]
