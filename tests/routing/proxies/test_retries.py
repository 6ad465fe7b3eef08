"""An edge tries again what nobody has begun, elsewhere and later, and nothing else."""

import asyncio
import statistics
from collections import Counter

import pytest

from routing.envoy.files import ROUTES, write_retries
from routing.fleet import RetryPolicy
from routing.metrics.observation import Target
from routing.metrics.proxies import ANSWERS, GPUS


def statuses(responses) -> Counter:
    return Counter(response.status_code for response in responses)


def policy(**changes):
    def change(content):
        content["retry"] |= changes

    return change


def test_a_job_that_a_full_region_refuses_goes_to_another(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 1.0}}) as fleet:
            responses = await fleet.crowd(4, fleet.url("a"))
            assert statuses(responses) == {200: 4}
            served = Counter(response.headers["x-stillmotion-region"] for response in responses)
            assert served == {"a": 2, "b": 2}
            # The first attempt goes by the table, and the next one to the rings.
            attempts = Counter(response.headers["x-stillmotion-attempts"] for response in responses)
            assert attempts == {"1": 2, "2": 2}
            assert sum(server.refused for server in fleet.all_servers()) == 0  # dispatchers refuse, GPUs see no attempt

    asyncio.run(scenario())


def test_a_burst_of_twice_the_gpus_waits_and_loses_nothing(running):
    async def scenario():
        change = policy(attempts=100, base_interval_s=0.02, max_interval_s=0.4)
        async with running({"a": 4}, change=change, service_s=0.2) as fleet:
            responses = await fleet.jobs(8, fleet.url("a"))
            assert statuses(responses) == {200: 8}
            assert sum(server.started for server in fleet.all_servers()) == 8
            assert max(server.most for server in fleet.all_servers()) == 1

    asyncio.run(scenario())


def test_attempts_end_and_the_client_learns_that_all_are_busy(running):
    async def scenario():
        change = policy(attempts=4, base_interval_s=0.04, max_interval_s=0.08)
        async with running({"a": 1}, change=change) as fleet:
            release = fleet.hold()
            first = asyncio.create_task(fleet.jobs(1, fleet.url("a")))
            await fleet.holds(fleet.begun)
            (response,) = await fleet.jobs(1, fleet.url("a"))
            assert response.status_code == 429
            assert response.content == b""
            assert response.headers["retry-after"] == "1"
            assert response.headers["x-stillmotion-attempts"] == "4"
            page = await fleet.page(Target("a", "dispatcher", fleet.places["a"].dispatchers[0].admin))
            assert page.total(ANSWERS, proxy=GPUS, code="4xx") == 4
            release.set()
            assert statuses(await first) == {200: 1}

    asyncio.run(scenario())


def test_waits_grow_and_are_drawn_up_to_the_limit(running):
    async def scenario():
        change = policy(attempts=4, base_interval_s=0.1, max_interval_s=0.2)
        async with running({"a": 1}, change=change) as fleet:
            fleet.servers["a"][0].busy = 1  # refuses all: the dispatcher lets one at a time through
            waits = []
            for _ in range(8):
                server = fleet.servers["a"][0]
                server.arrivals.clear()
                (response,) = await fleet.jobs(1, fleet.url("a"))
                assert response.status_code == 429
                assert len(server.arrivals) == 4
                waits.append([b - a for a, b in zip(server.arrivals, server.arrivals[1:], strict=False)])
            # Medians, since a busy machine may lengthen a few of them by as much as it likes.
            for k, limit in enumerate((0.1, 0.2, 0.2)):
                assert statistics.median(wait[k] for wait in waits) < limit + 0.2
            assert 0.08 < statistics.median(map(sum, waits)) < 0.7  # uniform draws: 0.25, and what the machine adds
            assert max(wait[1] for wait in waits) > 0.1

    asyncio.run(scenario())


@pytest.mark.parametrize("dies_at", [0.0, 0.5])
def test_a_job_whose_server_dies_is_not_computed_twice(running, dies_at):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 0.5, "b": 0.5}}, service_s=0.1) as fleet:
            for server in fleet.all_servers():
                server.dies_at = dies_at
            responses = await fleet.jobs(4, fleet.url("a"))
            assert statuses(responses) == {502: 4}
            assert responses[0].json()["code"] == "lost"
            assert {response.headers["x-stillmotion-attempts"] for response in responses} == {"1"}
            ids = sum((server.ids for server in fleet.all_servers()), Counter())
            assert len(ids) == 4
            assert set(ids.values()) == {1}

    asyncio.run(scenario())


def test_a_job_whose_dispatcher_dies_is_not_computed_twice(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 0.5, "b": 0.5}}) as fleet:
            release = fleet.hold()
            jobs = asyncio.create_task(fleet.jobs(4, fleet.url("a")))
            await fleet.holds(lambda: fleet.begun() == 4)
            fleet.kill("a", "dispatcher")
            await fleet.holds(lambda: sum(server.busy for server in fleet.servers["a"]) == 0)
            release.set()
            assert statuses(await jobs) == {200: 2, 502: 2}
            ids = sum((server.ids for server in fleet.all_servers()), Counter())
            assert len(ids) == 4
            assert set(ids.values()) == {1}

    asyncio.run(scenario())


def test_a_server_that_drains_is_tried_no_more_and_its_refusal_is_retried(running):
    async def scenario():
        async with running({"a": 1, "b": 1}, {"a": {"a": 1.0}}, service_s=0.05) as fleet:
            fleet.servers["a"][0].draining = True
            (response,) = await fleet.jobs(1, fleet.url("a"))
            assert response.status_code == 200
            assert response.headers["x-stillmotion-region"] == "b"

    asyncio.run(scenario())


def test_a_client_that_leaves_frees_its_gpu(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            fleet.hold()
            job = asyncio.create_task(fleet.jobs(1, fleet.url("a")))
            await fleet.holds(fleet.begun)
            job.cancel()
            await fleet.holds(lambda: not fleet.servers["a"][0].connected)
            assert fleet.servers["a"][0].finished == 0

    asyncio.run(scenario())


def test_the_policy_changes_while_it_runs(running):
    async def scenario():
        async with running({"a": 1}, change=policy(attempts=1)) as fleet:
            server = fleet.servers["a"][0]
            server.busy = 1
            for attempts in (1, 3, 2):
                before = await fleet.counter("a", r"http\.edge\.rds\.edge\.config_reload")
                new = RetryPolicy(attempts=attempts, base_interval_s=0.01, max_interval_s=0.02)
                if write_retries(fleet.root, fleet.fleet, "a", new):
                    await fleet.taken("a", r"http\.edge\.rds\.edge\.config_reload", before)
                server.arrivals.clear()
                (response,) = await fleet.jobs(1, fleet.url("a"))
                assert (response.status_code, len(server.arrivals)) == (429, attempts), ROUTES

    asyncio.run(scenario())


def test_a_large_picture_is_sent_again_too(running):
    async def scenario():
        async with running({"a": 1, "b": 1}, {"a": {"a": 1.0}}, service_s=0.2) as fleet:
            fleet.servers["a"][0].busy = 1
            picture = b"p" * (16 * 2**20)
            response = await fleet.client.post(fleet.url("a"), content=picture)
            assert response.status_code == 200
            assert response.headers["x-stillmotion-region"] == "b"
            assert response.headers["x-length"] == str(len(picture))

    asyncio.run(scenario())


def test_refusals_keep_connections(running):
    async def scenario():
        change = policy(attempts=9, base_interval_s=0.01, max_interval_s=0.05)
        async with running({"a": 1}, change=change, service_s=0.4) as fleet:
            fleet.servers["a"][0].busy = 1
            await fleet.jobs(20, fleet.url("a"))
            assert await fleet.counter("a", r"cluster\.jobs\.upstream_rq_retry") == 8 * 20
            assert await fleet.counter("a", r"cluster\.jobs\.upstream_cx_total") <= 20
            assert await fleet.counter("a", r"cluster\.jobs\.upstream_cx_destroy_local") == 0
            assert fleet.servers["a"][0].connections <= 20

    asyncio.run(scenario())
