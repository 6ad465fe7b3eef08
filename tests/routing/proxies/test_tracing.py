"""Traces in the configuration of proxies; tests/deploy/test_traces.py sees them arrive."""

import asyncio

import pytest

from routing.errors import InputError
from routing.fleet import Fleet
from routing.schema import validated


def test_users_do_not_decide_what_is_traced_and_servers_hear_of_none(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            headers = {"traceparent": "00-11111111111111111111111111111111-2222222222222222-01", "tracestate": "x=1"}
            (answer,) = await fleet.jobs(1, fleet.url("a"), headers=headers)
            assert answer.status_code == 200
            (seen,) = fleet.servers["a"][0].headers
            assert "traceparent" not in seen
            assert "tracestate" not in seen
            assert seen["x-request-id"] == answer.headers["x-request-id"]

    asyncio.run(scenario())


def test_a_share_of_the_requests_is_traced_and_jobs_go_on_without_a_collector(running, free_ports):
    async def scenario():
        (port,) = free_ports(1)
        tracing = {"collector": f"127.0.0.1:{port}", "share": 0.5}
        async with running({"a": 4}, tracing=tracing, service_s=0.01) as fleet:
            for _ in range(25):
                assert {one.status_code for one in await fleet.jobs(4, fleet.url("a"))} == {200}
            seen = [one for server in fleet.servers["a"] for one in server.headers]
            # By request: on a busy machine one may be tried twice.
            flags = {one["x-request-id"]: one["traceparent"].rpartition("-")[2] for one in seen}
            assert len(flags) == 100
            assert 25 <= list(flags.values()).count("01") <= 75  # 5 standard deviations

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("tracing", "text"),
    [
        ({"collector": "otel"}, "data_plane.tracing.collector: otel is no name or address with a port"),
        ({"collector": "http://otel:4318"}, "data_plane.tracing.collector"),
        ({"collector": "otel:4318", "share": -0.1}, "data_plane.tracing.share"),
        ({"share": 0.1}, "data_plane.tracing.collector: is missing"),
    ],
)
def test_what_is_wrong_is_named(tracing, text):
    content = {
        "regions": {"a": {"gpus": 1}},
        "service_time_s": 1.0,
        "rings_ms": [50],
        "thresholds": [{"load": 0.75, "ring": 1}],
        "target_load": 0.75,
        "data_plane": {"tracing": tracing},
    }
    with pytest.raises(InputError) as caught:
        validated(Fleet, content)
    assert text in str(caught.value)
