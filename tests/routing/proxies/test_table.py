"""An edge does what the table says, and goes on doing it while tables change."""

import asyncio
from collections import Counter

from routing.envoy.files import ENDPOINTS, edge_folder

UPDATES = r"cluster\.jobs\.update_success"
REJECTED = r"cluster\.jobs\.update_(rejected|failure)"


def regions_of(responses) -> Counter:
    assert {r.status_code for r in responses} == {200}, [r.status_code for r in responses]
    return Counter(r.headers["x-stillmotion-region"] for r in responses)


def test_requests_go_where_the_table_says(running):
    async def scenario():
        async with running({"a": 4, "b": 4, "c": 4}, {"a": {"a": 0.8, "b": 0.15, "c": 0.05}}, service_s=0.01) as fleet:
            responses = []
            for _ in range(50):
                responses += await fleet.jobs(4, fleet.url("a"))
            served = regions_of(responses)
            assert sum(served.values()) == 200
            for region, share in {"a": 160, "b": 30, "c": 10}.items():
                assert abs(served[region] - share) <= 2, served  # where one was busy, a retry went on

    asyncio.run(scenario())


def test_tables_change_under_load_without_a_failure(running):
    async def scenario():
        async with running({"a": 6, "b": 6}, service_s=0.02) as fleet:
            responses, stop = [], asyncio.Event()

            async def user():
                while not stop.is_set():
                    responses.append(await fleet.client.post(fleet.url("a"), content=b"x" * 50_000))

            users = [asyncio.create_task(user()) for _ in range(5)]
            for i in range(10):
                before = await fleet.counter("a", UPDATES)
                fleet.publish({"a": {"a": 1.0} if i % 2 else {"b": 1.0}})
                await fleet.taken("a", UPDATES, before)
                count = len(responses)
                await fleet.holds(lambda count=count: len(responses) >= count + 12)
            stop.set()
            await asyncio.gather(*users)
            served = regions_of(responses)
            assert min(served["a"], served["b"]) > 30  # five tables each, and twelve answers with each of them

            before = len(responses)
            responses += await fleet.jobs(5, fleet.url("a"))
            assert regions_of(responses[before:]) == {"a": 5}

    asyncio.run(scenario())


def test_a_file_that_is_no_table_changes_nothing(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"b": 1.0}}, service_s=0.01) as fleet:
            path = edge_folder(fleet.root, "a") / ENDPOINTS
            good = path.read_text()
            for bad in ("{", "", good.replace("load_balancing_weight", "weight"), good.replace("127.0.0.1", "nowhere")):
                before = await fleet.counter("a", r"cluster\.jobs\.update_attempt")
                partial = path.with_suffix(".partial")
                partial.write_text(bad)
                partial.replace(path)
                await fleet.taken("a", r"cluster\.jobs\.update_attempt", before)
                assert regions_of(await fleet.jobs(2, fleet.url("a"))) == {"b": 2}
            assert await fleet.counter("a", r"cluster\.jobs\.update_success") >= 1

            fleet.publish({"a": {"a": 1.0}})

            async def followed() -> bool:
                return regions_of(await fleet.jobs(1, fleet.url("a"))) == {"a": 1}

            await fleet.holds(followed)

    asyncio.run(scenario())


def test_a_table_that_says_the_same_is_not_written_again(running):
    async def scenario():
        async with running({"a": 1, "b": 1}) as fleet:
            assert fleet.publish({"a": {"a": 1.0}}) == []
            assert fleet.publish({"a": {"a": 0.5, "b": 0.5}}) == ["a"]

    asyncio.run(scenario())


def test_a_dead_region_is_left_and_regions_without_a_share_take_over(running):
    async def scenario():
        async with running({"a": 2, "b": 2, "c": 2}, {"a": {"a": 0.9, "b": 0.1}}, service_s=0.01) as fleet:
            fleet.kill("a", "dispatcher")
            assert set(regions_of(await fleet.jobs(4, fleet.url("a")))) <= {"b", "c"}
            await fleet.dead("a", 1)
            assert set(regions_of(await fleet.jobs(2, fleet.url("a")))) == {"b"}
            fleet.kill("b", "dispatcher")
            await fleet.dead("a", 2)
            assert regions_of(await fleet.jobs(2, fleet.url("a"))) == {"c": 2}

    asyncio.run(scenario())


def test_a_region_that_flaps_is_used_again_as_soon_as_it_is_back(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 0.99, "b": 0.01}}, service_s=0.01) as fleet:
            for _ in range(3):
                fleet.kill("a", "dispatcher")
                for _ in range(4):
                    assert regions_of(await fleet.jobs(1, fleet.url("a"))) == {"b": 1}
                fleet.start_dispatcher("a")
                await fleet.until(fleet.dispatcher_url("a", "/readyz"))
                await fleet.dead("a", 0)
                assert regions_of(await fleet.jobs(1, fleet.url("a"))) == {"a": 1}

    asyncio.run(scenario())


def test_a_region_whose_gpu_servers_are_all_gone_gets_nothing(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 0.9, "b": 0.1}}, service_s=0.01) as fleet:
            for server in fleet.servers["a"]:
                server.ready = False
            await fleet.until(fleet.dispatcher_url("a", "/readyz"), 503)
            await fleet.dead("a", 1)
            responses = await fleet.jobs(2, fleet.url("a"))
            assert regions_of(responses) == {"b": 2}
            assert {r.headers["x-stillmotion-attempts"] for r in responses} == {"1"}

            fleet.servers["a"][0].ready = True
            await fleet.until(fleet.dispatcher_url("a", "/readyz"))
            await fleet.dead("a", 0)
            assert regions_of([(await fleet.jobs(1, fleet.url("a")))[0] for _ in range(10)])["a"] >= 8

    asyncio.run(scenario())
