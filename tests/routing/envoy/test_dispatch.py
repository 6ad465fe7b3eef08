"""An ingress finds the free GPU, and refuses what none is free for."""

import asyncio
from collections import Counter

from routing.envoy.live import write_ready, write_servers

LIMITS = r"runtime\.load_success"


def statuses(responses) -> Counter:
    return Counter(response.status_code for response in responses)


def test_as_many_jobs_as_gpus_meet_no_busy_server(running):
    async def scenario():
        async with running({"a": 12}, edges=[]) as fleet:
            # The first burst meets closed connections, the second open ones.
            for _ in range(2):
                assert statuses(await fleet.crowd(12, fleet.ingress_url("a"))) == {200: 12}
            servers = fleet.servers["a"]
            assert [server.finished for server in servers] == [2] * 12
            assert sum(server.refused for server in servers) == 0

    asyncio.run(scenario())


def test_a_job_more_than_gpus_is_refused_at_once_as_a_busy_server_does(running):
    async def scenario():
        async with running({"a": 4}, edges=[]) as fleet:
            # None of those that are computed ends before the others are refused.
            responses = await fleet.crowd(6, fleet.ingress_url("a"), refused=2)
            assert statuses(responses) == {200: 4, 429: 2}
            for response in responses:
                if response.status_code == 429:
                    assert response.content == b""
                    assert response.headers["retry-after"] == "1"
                    assert response.headers["x-envoy-overloaded"] == "true"
            assert sum(server.refused for server in fleet.servers["a"]) == 0  # it was the ingress that refused

    asyncio.run(scenario())


def test_the_number_of_jobs_at_once_follows_the_ready_gpus_while_it_runs(running):
    async def scenario():
        async with running({"a": 4}, edges=[], service_s=0.2) as fleet:
            servers = fleet.places["a"].servers
            for ready in (2, 0, 4):
                before = await fleet.counter("a", LIMITS, "ingress")
                assert write_ready(fleet.root, fleet.fleet, "a", servers[:ready]) == {1: ready}
                await fleet.taken("a", LIMITS, before, "ingress")
                responses = await fleet.crowd(4, fleet.ingress_url("a"), refused=4 - ready)
                assert statuses(responses)[200] == ready

    asyncio.run(scenario())


def test_servers_come_and_go_while_it_runs(running):
    async def scenario():
        async with running({"a": 4}, edges=[], service_s=0.2) as fleet:
            addresses = fleet.places["a"].servers
            healthy = r"cluster\.jobs\.membership_healthy"
            for count in (1, 4, 2):
                write_servers(fleet.root, "a", addresses[:count])

                async def seen(count=count) -> bool:
                    return await fleet.counter("a", healthy, "ingress") == count

                await fleet.holds(seen)
                responses = await fleet.crowd(4, fleet.ingress_url("a"), refused=4 - count)
                assert statuses(responses) == Counter({200: count, 429: 4 - count})

    asyncio.run(scenario())


def test_pages_answer_while_every_gpu_is_busy(running):
    async def scenario():
        async with running({"a": 2}) as fleet:
            release = fleet.hold()
            jobs = asyncio.create_task(fleet.jobs(2, fleet.url("a")))
            await fleet.holds(lambda: fleet.begun() == 2)
            for path in ("/docs.json", "/ui/", "/schema.json", "/", "/readyz", "/livez", "/healthz"):
                response = await fleet.client.get(fleet.url("a", path))
                assert response.status_code == 200, path
            assert not jobs.done()
            release.set()
            assert statuses(await jobs) == {200: 2}

    asyncio.run(scenario())


def test_a_dead_server_costs_no_job(running):
    async def scenario():
        async with running({"a": 3}, edges=[], service_s=0.05) as fleet:
            await fleet.servers["a"][0].close()
            for _ in range(5):
                assert statuses(await fleet.jobs(2, fleet.ingress_url("a"))) == {200: 2}

    asyncio.run(scenario())


def test_events_of_a_stream_arrive_as_they_are_sent(running):
    async def scenario():
        async with running({"a": 1}) as fleet:
            # The server sends an event once the one before has arrived: one that was kept back would be the last.
            fleet.servers["a"][0].paced = sent = asyncio.Semaphore(1)
            async with fleet.client.stream("POST", fleet.url("a", "/animate/stream"), content=b"x") as response:
                assert response.status_code == 200
                count = 0
                async for line in response.aiter_lines():
                    if line.startswith("event:"):
                        count += 1
                        sent.release()
            assert count == 4

    asyncio.run(scenario())


def test_latency_between_regions_is_emulated_and_only_where_asked_for(running):
    async def scenario():
        def change(content):
            content["latency_ms"] = {"a": {"b": 400}}
            content["rings_ms"] = [500]

        shares = {"a": {"a": 1.0}, "b": {"a": 1.0}}
        for emulated in (True, False):
            async with running(
                {"a": 2, "b": 0}, shares, edges=["a", "b"], change=change, service_s=0.01, emulate_latency=emulated
            ) as fleet:

                async def took(region, fleet=fleet):
                    return (await fleet.jobs(1, fleet.url(region)))[0].elapsed.total_seconds()

                async def at_once(region, took=took):
                    return await took(region) < 0.3

                await fleet.holds(lambda at_once=at_once: at_once("a"))
                if emulated:
                    # Timers of Envoy count whole milliseconds, on a clock read once a round: one may be early.
                    assert min([await took("b") for _ in range(2)]) >= 0.398
                else:
                    await fleet.holds(lambda at_once=at_once: at_once("b"))

    asyncio.run(scenario())
