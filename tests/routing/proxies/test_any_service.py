"""Any HTTP service that works on one job at a time can stand behind the proxies; clients have limits of their own."""

import asyncio
import json
import time
from collections import Counter

import pytest
import yaml

PLAIN = {"paths": ["/work"], "pages": [], "ready": "/health", "deadline_s": 10, "body_limit": "64KiB"}
"""A plain HTTP service: one path, a health path of its own, nothing else, and no metrics."""
VIDEOS = {"paths": ["/v1/videos"], "pages": ["/v1/models"], "ready": "/v1/models", "deadline_s": 600}
"""A synchronous path as servers of video models have it."""


@pytest.mark.parametrize(("jobs", "page"), [(PLAIN, None), (VIDEOS, "/v1/models")])
def test_a_service_is_described_by_its_paths_and_the_proxies_know_no_other(running, jobs, page):
    async def scenario():
        def change(content):
            content["queue"] = {"max_wait_s": 60.0}

        async with running({"a": 2}, change=change, jobs=jobs, service_s=0.05) as fleet:
            (path,) = jobs["paths"]
            responses = await asyncio.gather(
                *(fleet.client.post(fleet.url("a", path), json={"prompt": str(i)}) for i in range(6))
            )
            assert Counter(response.status_code for response in responses) == {200: 6}
            assert max(server.most for server in fleet.servers["a"]) == 1
            assert sum(server.refused for server in fleet.servers["a"]) == 0
            for other in ("/animate", "/docs.json", "/"):
                assert (await fleet.client.post(fleet.url("a", other))).status_code == 404 or (other == "/" and page)
            if page is not None:
                release = fleet.hold()
                busy = [asyncio.create_task(fleet.client.post(fleet.url("a", path), content=b"x")) for _ in range(2)]
                await fleet.holds(lambda: all(server.busy for server in fleet.servers["a"]))
                assert (await fleet.client.get(fleet.url("a", page))).status_code == 200  # while all compute
                release.set()
                await asyncio.gather(*busy)
            for server in fleet.servers["a"]:
                server.ready = False
            await fleet.ready("a", 0)  # by the service's own health path

    asyncio.run(scenario())


def test_a_client_says_how_long_its_job_may_take_and_servers_hear_what_is_left(running):
    async def scenario():
        async with running({"a": 1}, service_s=0.01) as fleet:
            began_ms = time.time() * 1000
            (response,) = await fleet.jobs(1, fleet.url("a"), headers={"x-job-timeout-ms": "30000"})
            assert response.status_code == 200
            (seen,) = fleet.servers["a"][0].headers
            assert seen["x-job-timeout-ms"] == "30000"
            assert 20_000 < int(seen["x-job-deadline"]) - began_ms <= 90_000

            fleet.hold()
            (response,) = await fleet.jobs(1, fleet.url("a"), headers={"x-job-timeout-ms": "400"})
            assert (response.status_code, response.json()["code"]) == (504, "deadline")
            await fleet.holds(lambda: not fleet.servers["a"][0].connected)  # and the server is told

    asyncio.run(scenario())


def test_the_time_of_earlier_attempts_is_taken_off_what_is_left(running):
    async def scenario():
        def change(content):
            content["retry"] |= {"attempts": 9, "base_interval_s": 0.2, "max_interval_s": 0.2}

        async with running({"a": 1}, change=change, service_s=0.01) as fleet:
            server = fleet.servers["a"][0]
            server.busy = 1
            job = asyncio.create_task(fleet.jobs(1, fleet.url("a"), headers={"x-job-timeout-ms": "60000"}))
            await fleet.holds(lambda: server.refused >= 3)
            server.busy = 0
            assert (await job)[0].status_code == 200
            # By the dispatcher's clock each attempt ends at the same moment.
            deadlines = [int(one["x-job-deadline"]) for one in server.headers]
            assert max(deadlines) - min(deadlines) < 1_000
            assert server.arrivals[-1] - server.arrivals[0] > 0

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["soon", "0", "-5", "1.5", "9999999999"])
def test_a_time_that_is_none_is_refused(running, text):
    async def scenario():
        async with running({"a": 1}, service_s=0.01) as fleet:
            (response,) = await fleet.jobs(1, fleet.url("a"), headers={"x-job-timeout-ms": text})
            assert (response.status_code, response.json()["code"]) == (400, "bad_request")
            assert fleet.servers["a"][0].started == 0

    asyncio.run(scenario())


def test_each_api_key_has_its_rate_and_does_not_use_up_that_of_others(running, tmp_path):
    keys = {name: f"a-key-of-{name}-0123456789" for name in ("studio", "lab", "nightly")}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(keys))

    async def scenario():
        limit = {"rps": 0.01, "burst": 4, "clients": {"nightly": 0.005}}
        async with running({"a": 1}, service_s=0.01, api_keys="keys.yaml", rate_limit=limit) as fleet:

            async def sent(client, count):
                found = [
                    (await fleet.jobs(1, fleet.url("a"), headers={"x-api-key": keys[client]}))[0] for _ in range(count)
                ]
                return found, Counter(response.status_code for response in found)

            found, statuses = await sent("studio", 6)
            assert statuses == {200: 4, 429: 2}
            refused = found[-1]
            assert refused.json()["code"] == "rate_limited"
            assert refused.headers["retry-after"] == "100"
            assert (await sent("lab", 4))[1] == {200: 4}
            assert (await sent("nightly", 3))[1] == {200: 2, 429: 1}
            page = await fleet.client.get(fleet.url("a", "/docs.json"), headers={"x-api-key": keys["studio"]})
            assert page.status_code == 200  # only jobs are counted
            assert json.loads(page.content)["x-stillmotion-client"] == "studio"

    asyncio.run(scenario())
