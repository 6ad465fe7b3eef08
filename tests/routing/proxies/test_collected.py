"""What the collector of the control loop makes of the counters of real proxies."""

import asyncio

from routing.metrics.observation import Target
from routing.metrics.pages import PageSource, targets
from routing.metrics.proxies import Dispatcher, Edge


def test_the_collector_counts_each_job_once_and_where_it_was_served(running):
    async def scenario():
        async with running({"a": 2, "b": 2}, {"a": {"a": 0.5, "b": 0.5}}, service_s=0.05) as fleet:
            proxy = Target("a", "edge", fleet.places["a"].admin)
            source = PageSource(fleet.fleet, {proxy: targets(fleet.fleet)[proxy]})
            edge = Edge(proxy)

            async def traffic():
                reading = await source.read()
                problems = list(reading.problems)
                seen = edge.take(reading.pages[0], 15.0, problems)
                assert (problems, reading.failures) == ([], ())
                return seen

            async def counted():
                # Two pages of nearly the same moment say nothing of a rate.
                return await fleet.holds(traffic)

            try:
                assert await traffic() is None
                for _ in range(10):
                    await fleet.jobs(2, fleet.url("a"))
                    await fleet.client.get(fleet.url("a", "/docs.json"))
                seen = await counted()
                assert seen.jobs == 20
                assert sum(seen.answered.values()) == 20
                assert min(seen.answered.values()) > 0
                # More jobs than GPUs: those that wait between two attempts have come as well.
                came = r"http\.edge\.downstream_rq_total"
                before, release = await fleet.counter("a", came), fleet.hold()

                async def all_came():
                    return await fleet.counter("a", came) >= before + 12

                waiting = asyncio.gather(*(fleet.client.post(fleet.url("a"), content=b"x") for _ in range(12)))
                await fleet.holds(all_came)
                early = await counted()
                release.set()
                await waiting
                late = await counted()
                assert (early.jobs, late.jobs) == (12, 0)
                assert early.retries + late.retries > 0
                begun = fleet.begun()
                fleet.hold()
                given_up = asyncio.create_task(fleet.client.post(fleet.url("a"), content=b"x"))
                await fleet.holds(lambda: fleet.begun() > begun)
                given_up.cancel()
                await fleet.holds(lambda: not any(server.busy for server in fleet.all_servers()))
                assert (await counted()).jobs == 1  # given up, and yet it came
            finally:
                await source.close()

    asyncio.run(scenario())


def test_the_collector_counts_a_real_dispatchers_servers_jobs_and_line(running):
    def with_line(content):
        content["queue"] = {"max_wait_s": 60.0}

    async def scenario():
        async with running({"a": 3}, edges=[], change=with_line, service_s=0.01) as fleet:
            target = Target("a", "dispatcher", fleet.places["a"].dispatchers[0].admin)
            source = PageSource(fleet.fleet, {target: targets(fleet.fleet)[target]})
            dispatcher = Dispatcher(target)
            await fleet.ready("a", 3)

            async def work():
                reading = await source.read()
                problems = list(reading.problems)
                seen = dispatcher.take(reading.pages[0], 60.0, problems)
                assert (problems, reading.failures) == ([], ())
                return seen

            try:
                assert await work() is None
                assert (dispatcher.ready, dispatcher.in_service, dispatcher.waiting) == (3, 0, 0)
                release = fleet.hold()
                sent = [
                    asyncio.create_task(fleet.client.post(fleet.dispatcher_url("a"), content=b"x")) for _ in range(5)
                ]
                await fleet.line("a", 2)
                held = await fleet.holds(work)
                assert held.jobs == 3 / 2  # of those that are under way, half
                assert held.busy_s > 0
                assert (dispatcher.ready, dispatcher.in_service, dispatcher.waiting) == (3, 3, 2)  # busy ones are ready
                release.set()
                await asyncio.gather(*sent)
                done = await fleet.holds(work)
                assert (held.jobs + done.jobs, dispatcher.in_service, dispatcher.waiting) == (5, 0, 0)
            finally:
                await source.close()

    asyncio.run(scenario())
