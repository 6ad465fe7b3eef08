"""Demand, requests from region to region and ready GPUs can be read from the proxies."""

import asyncio
import json

from routing.dispatcher.counters import DispatcherCounters, read_dispatcher
from routing.envoy.counters import EdgeCounters, read_edge


def test_jobs_are_counted_once_and_by_where_they_went(running):
    async def scenario():
        def change(content):
            content["retry"] |= {"attempts": 3, "base_interval_s": 0.01, "max_interval_s": 0.01}

        async with running({"a": 2, "b": 2}, {"a": {"a": 0.5, "b": 0.5}}, change=change, service_s=0.01) as fleet:

            async def page(address):
                return (await fleet.client.get(f"http://{address}/stats/prometheus")).text

            async def edge():
                return read_edge(await page(fleet.places["a"].admin))

            assert await edge() == EdgeCounters(0, 0, {}, {})

            for server in fleet.servers["b"]:
                server.busy = 1
            for _ in range(10):
                await fleet.jobs(2, fleet.url("a"))
                await fleet.client.get(fleet.url("a", "/docs.json"))
            counted = await edge()
            assert (counted.jobs, counted.served, counted.refused) == (20, {"a": 20}, {})
            assert counted.attempts >= 30

            for server in fleet.servers["a"]:
                server.busy = 1
            await fleet.jobs(1, fleet.url("a"))
            counted = await edge()
            assert counted.jobs == 21
            assert sum(counted.refused.values()) == 1

            for server in fleet.all_servers():
                server.busy = 0
            fleet.kill("b", "dispatcher")
            for _ in range(6):
                await fleet.jobs(1, fleet.url("a"))
            counted = await edge()
            assert (counted.jobs, counted.served) == (27, {"a": 26})

            fleet.kill("a", "dispatcher")
            await fleet.dead("a", 2)
            assert (await fleet.jobs(1, fleet.url("a")))[0].status_code == 503
            assert (await edge()).jobs == 28

    asyncio.run(scenario())


def test_a_dispatcher_tells_its_load_and_its_line(running):
    async def scenario():
        def change(content):
            content |= {"service_time_s": 20.0, "queue": {"max_wait_s": 7.0}}  # one place: a third of a job

        async with running({"a": 3}, edges=[], change=change) as fleet:
            release = fleet.hold()
            jobs = [asyncio.create_task(fleet.jobs(1, fleet.dispatcher_url("a"))) for _ in range(5)]
            await fleet.holds(lambda: fleet.begun() == 3 and any(job.done() for job in jobs))
            await fleet.line("a", 1)
            assert await fleet.dispatcher("a") == DispatcherCounters(3, 3, computing=3, waiting=1, served=0, refused=1)
            release.set()
            await asyncio.gather(*jobs)
            assert await fleet.dispatcher("a") == DispatcherCounters(3, 3, computing=0, waiting=0, served=4, refused=1)

    asyncio.run(scenario())


def test_a_page_that_is_none_counts_nothing():
    assert read_edge("<html>") == EdgeCounters(0, 0, {}, {})
    assert read_dispatcher("") == DispatcherCounters(0, 0, 0, 0, 0, 0)


def test_another_machine_reads_counters_and_nothing_else(running, free_ports):
    async def scenario():
        edge = f"127.0.0.1:{free_ports(1)[0]}"

        def change(content):
            content["data_plane"]["places"]["a"]["metrics"] = edge

        async with running({"a": 1}, change=change, service_s=0.01) as fleet:
            await fleet.jobs(3, fleet.url("a"))
            assert read_edge((await fleet.client.get(f"http://{edge}/metrics")).text).jobs == 3
            assert (await fleet.dispatcher("a")).ready == 1
            dispatcher = fleet.places["a"].dispatchers[0].admin
            for path in ("/", "/stats", "/animate"):
                assert (await fleet.client.get(f"http://{dispatcher}{path}")).status_code == 404
            for path in ("/livez", "/readyz"):
                assert (await fleet.client.get(f"http://{dispatcher}{path}")).status_code == 200
            for method, path in (("POST", "/metrics"), ("GET", "/stats"), ("GET", "/config_dump"), ("GET", "/")):
                assert (await fleet.client.request(method, f"http://{edge}{path}")).status_code == 404

    asyncio.run(scenario())


def test_an_edge_logs_requests_without_keys_and_pictures(running, tmp_path):
    async def scenario():
        (tmp_path / "keys.yaml").write_text("studio: a-key-of-the-studio\n")
        async with running({"a": 1}, service_s=0.01, api_keys="keys.yaml") as fleet:
            headers = {"X-API-Key": "a-key-of-the-studio"}
            url = fleet.url("a", "/animate?token=secret")
            assert (await fleet.client.post(url, content=b"a picture", headers=headers)).status_code == 200
            log = fleet.root / "a" / "edge" / "log.txt"

            def lines():
                return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]

            (line,) = await fleet.holds(lines)
            assert (line["status"], line["region"], line["attempts"]) == (200, "a", 1)
            assert (line["client"], line["path"]) == ("studio", "/animate")
            assert not {"secret", "a-key-of-the-studio", "picture"} & set(log.read_text().split('"'))
            assert "secret" not in log.read_text()

    asyncio.run(scenario())
