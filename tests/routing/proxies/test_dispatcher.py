"""A dispatcher keeps one line of jobs for all its GPU servers, and sends each of them one job at a time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from routing.dispatcher.runtime import Runtime, drain_server, set_servers
from routing.errors import RoutingError
from routing.proxies import drain


def statuses(responses) -> Counter:
    return Counter(response.status_code for response in responses)


def with_line(max_wait_s=60.0, **queue):
    """A fleet whose dispatchers let jobs wait."""

    def change(content):
        content["queue"] = {"max_wait_s": max_wait_s, **queue}

    return change


@contextlib.asynccontextmanager
async def one_server_busy(running, change=None, gpus=1, **more):
    """A fleet whose GPU servers have a job each, which goes on until `release.set()`."""
    async with running({"a": gpus}, edges=[], change=change or with_line(), service_s=0.01, **more) as fleet:
        release = fleet.hold()
        first = [send(fleet) for _ in range(gpus)]
        await fleet.holds(lambda: fleet.begun() == gpus)
        try:
            yield fleet, release
        finally:
            release.set()
            await asyncio.gather(*first, return_exceptions=True)


def send(fleet, **headers):
    """A job that is sent now, whoever waits for it."""
    return asyncio.create_task(fleet.client.post(fleet.dispatcher_url("a"), content=b"job", headers=headers))


def order(fleet) -> list[str]:
    """Names of the jobs, in the order in which servers began them."""
    seen = [(at, headers) for one in fleet.all_servers() for at, headers in zip(one.arrivals, one.headers, strict=True)]
    return [headers["x-name"] for _, headers in sorted(seen, key=lambda one: one[0]) if "x-name" in headers]


def test_as_many_jobs_as_gpus_meet_no_busy_server(running):
    async def scenario():
        async with running({"a": 12}, edges=[]) as fleet:
            for _ in range(2):
                assert statuses(await fleet.crowd(12, fleet.dispatcher_url("a"))) == {200: 12}
            assert [server.finished for server in fleet.servers["a"]] == [2] * 12
            assert sum(server.refused for server in fleet.servers["a"]) == 0

    asyncio.run(scenario())


def test_jobs_wait_in_one_line_and_the_oldest_is_next(running):
    async def scenario():
        async with one_server_busy(running) as (fleet, release):
            jobs = []
            for i in range(6):
                jobs.append(send(fleet, **{"x-name": str(i)}))
                await fleet.line("a", i + 1)
            release.set()
            assert statuses(await asyncio.gather(*jobs)) == {200: 6}
            assert order(fleet) == list("012345")
            assert fleet.servers["a"][0].most == 1
            assert fleet.servers["a"][0].refused == 0

    asyncio.run(scenario())


def test_batch_jobs_wait_behind_interactive_ones_by_header_or_client(running):
    async def scenario():
        async with one_server_busy(running, with_line(batch_clients=["nightly"])) as (fleet, release):
            jobs = []
            for name, more in (
                ("batch 1", {"x-job-class": "batch"}),
                ("batch 2", {"x-stillmotion-client": "nightly"}),
                ("first", {}),
                ("second", {"x-job-class": "interactive"}),
            ):
                jobs.append(send(fleet, **{"x-name": name}, **more))
                await fleet.line("a", len(jobs))
            release.set()
            await asyncio.gather(*jobs)
            assert order(fleet) == ["first", "second", "batch 1", "batch 2"]

    asyncio.run(scenario())


def test_a_job_that_was_let_in_waits_no_longer_than_the_bound_all_the_same(running):
    async def scenario():
        def change(content):
            with_line(0.5)(content)
            content["service_time_s"] = 0.5

        async with one_server_busy(running, change) as (fleet, release):
            refused = await send(fleet)  # it has a place, and its turn does not come
            assert (refused.status_code, refused.content) == (429, b"")
            assert refused.headers["retry-after"] == "1"
            release.set()
            assert (await send(fleet)).status_code == 200

    asyncio.run(scenario())


def test_a_full_line_of_batch_jobs_leaves_interactive_jobs_their_places(running):
    async def scenario():
        def change(content):
            with_line(60.0, batch_max_wait_s=100.0)(content)
            content["service_time_s"] = 20.0  # three places, and five for batch

        async with one_server_busy(running, change) as (fleet, release):
            batch = [send(fleet, **{"x-job-class": "batch"}) for _ in range(8)]
            await fleet.holds(lambda: sum(job.done() for job in batch) == 3)
            jobs = [send(fleet) for _ in range(5)]
            await fleet.holds(lambda: sum(job.done() for job in jobs) == 2)
            release.set()
            assert statuses(await asyncio.gather(*batch)) == {200: 5, 429: 3}
            assert statuses(await asyncio.gather(*jobs)) == {200: 3, 429: 2}

    asyncio.run(scenario())


def test_a_job_that_another_region_refused_takes_no_place_that_users_of_this_one_need(running):
    async def scenario():
        def change(content):
            with_line(60.0, spill_max_wait_s=20.0)(content)
            content["service_time_s"] = 20.0  # three places, of which the first is for anybody

        retried = {"x-envoy-attempt-count": "2", "x-stillmotion-source": "b"}
        planned, own = retried | {"x-envoy-attempt-count": "1"}, retried | {"x-stillmotion-source": "a"}
        async with one_server_busy(running, change) as (fleet, release):
            waiting = []
            for headers, status in ((retried, 0), (retried, 429), (planned, 0), (retried, 429), (own, 0), (own, 429)):
                job = send(fleet, **headers)
                if status:
                    assert (await job).status_code == status
                else:
                    waiting.append(job)
                    await fleet.line("a", len(waiting))
            release.set()
            assert statuses(await asyncio.gather(*waiting)) == {200: 3}

    asyncio.run(scenario())


def test_a_job_that_would_wait_too_long_is_refused_with_the_time_after_which_there_is_room(running):
    async def scenario():
        def change(content):
            content |= {"service_time_s": 5.0, "queue": {"max_wait_s": 10.0}}

        async with one_server_busy(running, change, gpus=2) as (fleet, release):
            waiting = [send(fleet) for _ in range(4)]  # 10 s at 2 GPUs of 5 s each
            await fleet.line("a", 4)
            refused = await send(fleet)
            assert (refused.status_code, refused.content) == (429, b"")
            # Five jobs at 2 GPUs of about 5 s each; the estimate follows what is measured.
            assert refused.headers["retry-after"] in {"12", "13"}
            release.set()
            assert statuses(await asyncio.gather(*waiting)) == {200: 4}
            assert sum(server.refused for server in fleet.servers["a"]) == 0

    asyncio.run(scenario())


def test_the_line_gets_longer_when_jobs_turn_out_to_be_shorter(running):
    async def scenario():
        def change(content):
            content |= {"service_time_s": 1.0, "queue": {"max_wait_s": 1.0}}

        async with running({"a": 1}, edges=[], change=change, service_s=0.01) as fleet:
            # The dispatcher's own estimate, after fifty jobs of a few milliseconds: well below half of what was given.
            for _ in range(50):
                assert (await send(fleet)).status_code == 200
            release = fleet.hold()
            jobs = [send(fleet) for _ in range(3)]
            await fleet.line("a", 2)
            release.set()
            assert statuses(await asyncio.gather(*jobs)) == {200: 3}

    asyncio.run(scenario())


def test_jobs_that_waited_in_line_do_not_make_the_line_shorter(running):
    """The time of a job is that at a server, however many have waited before."""

    async def scenario():
        def change(content):
            with_line(2.4)(content)
            content["service_time_s"] = 0.12  # twenty places

        async with running({"a": 1}, edges=[], change=change, service_s=0.12) as fleet:
            for _ in range(3):
                assert statuses(await asyncio.gather(*[send(fleet) for _ in range(10)])) == {200: 10}
            release = fleet.hold()
            jobs = [send(fleet) for _ in range(31)]
            await fleet.holds(lambda: any(job.done() for job in jobs))
            await asyncio.sleep(0.2)
            refused = sum(job.done() for job in jobs)
            release.set()
            await asyncio.gather(*jobs)
            assert refused <= 20  # ten; more where a busy machine made jobs longer

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_waits_is_taken_out_of_the_line(running):
    async def scenario():
        async with one_server_busy(running) as (fleet, release):
            leaves, stays = send(fleet, **{"x-name": "leaves"}), None
            await fleet.line("a", 1)
            stays = send(fleet, **{"x-name": "stays"})
            await fleet.line("a", 2)
            leaves.cancel()
            await fleet.line("a", 1)
            release.set()
            assert (await stays).status_code == 200
            assert order(fleet) == ["stays"]

    asyncio.run(scenario())


def test_a_server_whose_client_has_left_refuses_few_of_the_line_while_it_computes_on(running):
    async def scenario():
        def change(content):
            with_line()(content)
            content["service_time_s"] = 2.0  # a refusal is held back for an eighth of it

        async with running({"a": 1}, edges=[], change=change, service_s=0.01) as fleet:
            server = fleet.servers["a"][0]
            server.lingers_s = 0.6
            release = fleet.hold()
            leaves = send(fleet)
            await fleet.holds(lambda: fleet.begun() == 1)
            jobs = [send(fleet) for _ in range(10)]
            await fleet.line("a", 10)
            leaves.cancel()
            await fleet.holds(lambda: fleet.begun() == 2)
            release.set()
            found = statuses(await asyncio.gather(*jobs))
            # 0.6 s at 0.25 s each; without the pause all ten are refused within milliseconds.
            assert 1 <= found[429] <= 4
            assert found[200] == 10 - found[429]

    asyncio.run(scenario())


def test_a_job_that_a_busy_server_refused_gets_in_line_again_when_its_edge_tries_again(running):
    async def scenario():
        def change(content):
            with_line()(content)
            content["retry"] |= {"attempts": 9, "base_interval_s": 0.05, "max_interval_s": 0.05}

        async with running({"a": 1}, change=change, service_s=0.01) as fleet:
            server = fleet.servers["a"][0]
            server.busy = 1  # as it is for a moment when a client has left
            old = asyncio.create_task(fleet.client.post(fleet.url("a"), content=b"job", headers={"x-name": "old"}))
            await fleet.holds(lambda: server.refused >= 1)
            release = fleet.hold()
            server.busy = 0
            first = asyncio.create_task(fleet.client.post(fleet.url("a"), content=b"job", headers={"x-name": "first"}))
            await fleet.holds(lambda: fleet.begun() == 1)
            young = asyncio.create_task(fleet.client.post(fleet.url("a"), content=b"job", headers={"x-name": "young"}))
            await fleet.line("a", 2)
            release.set()
            assert statuses(await asyncio.gather(old, first, young)) == {200: 3}
            assert sorted(order(fleet)[-3:]) == ["first", "old", "young"]

    asyncio.run(scenario())


def test_a_job_waits_behind_those_that_came_before_and_servers_hear_until_when_it_may_take(running):
    async def scenario():
        async with one_server_busy(running) as (fleet, release):
            ages = {"young": 100, "old": 30_000, "older": 59_000}
            jobs = []
            for name, age_ms in ages.items():
                left = {"x-job-timeout-ms": "120000", "x-envoy-expected-rq-timeout-ms": str(120_000 - age_ms)}
                jobs.append(send(fleet, **{"x-name": name}, **left))
                await fleet.line("a", len(jobs))
            at_ms = time.time() * 1000
            release.set()
            assert statuses(await asyncio.gather(*jobs)) == {200: 3}
            assert order(fleet) == ["young", "old", "older"]
            seen = {one["x-name"]: one for one in fleet.servers["a"][0].headers if "x-name" in one}
            assert 80_000 < int(seen["old"]["x-job-deadline"]) - at_ms <= 90_000
            assert "x-envoy-expected-rq-timeout-ms" not in seen["old"]

    asyncio.run(scenario())


def test_a_job_that_cannot_be_done_in_what_is_left_of_its_time_does_not_wait(running):
    async def scenario():
        def change(content):
            with_line()(content)
            content["service_time_s"] = 2.0

        async with one_server_busy(running, change) as (fleet, release):
            left = {"x-job-timeout-ms": "9000", "x-envoy-expected-rq-timeout-ms": "2500"}
            assert (await send(fleet, **left)).status_code == 429
            left["x-envoy-expected-rq-timeout-ms"] = "4500"
            waits = send(fleet, **left)
            await fleet.line("a", 1)
            release.set()
            assert (await waits).status_code == 200

    asyncio.run(scenario())


def test_servers_come_and_go_while_it_runs(running):
    async def scenario():
        async with running({"a": 4}, edges=[], service_s=0.05) as fleet:
            addresses = fleet.places["a"].servers
            folder = fleet.runtime("a")
            assert len(folder.servers()) == 4
            at = fleet.root / "a" / "dispatcher"
            for count in (1, 4, 2):
                await asyncio.to_thread(set_servers, at, addresses[:count], drain_s=30)
                await fleet.ready("a", count)
                responses = await fleet.crowd(4, fleet.dispatcher_url("a"), refused=4 - count)
                assert statuses(responses) == Counter({200: count, 429: 4 - count})
                fleet.programs.check([p for p in fleet.proxies if p.role == "dispatcher"])

    asyncio.run(scenario())


def test_no_job_fails_while_servers_are_added_and_removed_under_load(running):
    async def scenario():
        async with running({"a": 4}, edges=[], change=with_line(), service_s=0.02) as fleet:
            addresses, done = fleet.places["a"].servers, asyncio.Event()
            found = Counter()

            async def user():
                while not done.is_set():
                    found[(await send(fleet)).status_code] += 1

            users = [asyncio.create_task(user()) for _ in range(6)]
            at = fleet.root / "a" / "dispatcher"
            for count in (2, 4, 3, 4):
                before = sum(found.values())
                await asyncio.to_thread(set_servers, at, addresses[:count], drain_s=30)
                await fleet.holds(lambda before=before: sum(found.values()) > before + 10)
            done.set()
            await asyncio.gather(*users)
            assert set(found) == {200}
            assert sum(server.refused for server in fleet.servers["a"]) == 0

    asyncio.run(scenario())


def test_a_server_that_drains_ends_its_job_and_gets_no_other(running):
    async def scenario():
        async with one_server_busy(running) as (fleet, release):
            (address,) = fleet.places["a"].servers
            drain_server(fleet.root / "a" / "dispatcher", address)
            await fleet.ready("a", 0)
            assert (await send(fleet)).status_code == 503
            assert fleet.servers["a"][0].busy == 1
            release.set()
            await fleet.holds(lambda: fleet.servers["a"][0].finished == 1)

    asyncio.run(scenario())


def test_a_dispatcher_is_taken_out_before_it_stops(running):
    async def scenario():
        async with one_server_busy(running) as (fleet, release):
            runtime = fleet.runtime("a")
            assert await asyncio.to_thread(drain, runtime, 0.0, 0.0) == 1
            assert (await fleet.client.get(fleet.dispatcher_url("a", "/readyz"))).status_code == 503
            assert (await fleet.client.get(fleet.dispatcher_url("a", "/livez"))).status_code == 200
            release.set()
            assert await asyncio.to_thread(drain, runtime, 0.0, 30.0) == 0

    asyncio.run(scenario())


def test_a_dispatcher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RoutingError, match=r"haproxy\.sock: the dispatcher does not answer"):
        drain(Runtime(tmp_path / "haproxy.sock"), 0.0, 0.0)


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
                assert statuses(await fleet.jobs(2, fleet.dispatcher_url("a"))) == {200: 2}

    asyncio.run(scenario())


def test_a_job_whose_server_dies_is_lost_and_not_computed_twice(running):
    async def scenario():
        async with running({"a": 2}, edges=[], service_s=0.05) as fleet:
            for server in fleet.servers["a"]:
                server.dies_at = 0.5
            response = await send(fleet)
            assert (response.status_code, response.json()["code"]) == (502, "lost")
            assert fleet.begun() == 1

    asyncio.run(scenario())


def test_a_server_that_hangs_is_given_up_at_the_deadline(running):
    async def scenario():
        def change(content):
            content["jobs"] = {"deadline_s": 0.3}

        async with running({"a": 1}, edges=[], change=change) as fleet:
            fleet.hold()
            response = await send(fleet)
            assert (response.status_code, response.json()["code"]) == (504, "deadline")

    asyncio.run(scenario())


def test_a_body_over_the_limit_is_refused_while_the_line_is_full_too(running):
    async def scenario():
        def change(content):
            with_line(0.3)(content)
            content["jobs"] = {"body_limit": "1KiB"}

        async with one_server_busy(running, change) as (fleet, _):
            send(fleet)
            await fleet.line("a", 1)
            response = await fleet.client.post(fleet.dispatcher_url("a"), content=b"x" * 1025)
            assert (response.status_code, response.json()["code"]) == (413, "too_large")

    asyncio.run(scenario())


def test_a_body_that_waits_in_line_does_not_hold_up_the_others(running):
    async def scenario():
        async with running({"a": 1}, change=with_line(), service_s=0.01) as fleet:
            large = b"x" * (4 * 2**20)
            responses = await asyncio.gather(*(fleet.client.post(fleet.url("a"), content=large) for _ in range(6)))
            assert statuses(responses) == {200: 6}
            assert {response.headers["x-length"] for response in responses} == {str(len(large))}

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
                    # Timers count whole milliseconds, on a clock read once a round: one may be early.
                    assert min([await took("b") for _ in range(2)]) >= 0.398
                else:
                    await fleet.holds(lambda at_once=at_once: at_once("b"))

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def as_a_service(fleet):
    """The dispatcher of a fleet, run by `python -m routing proxy`; its log grows in a file."""
    fleet.kill("a", "dispatcher")
    folder = fleet.root / "a" / "dispatcher"
    log = fleet.root / "service.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "routing", "proxy", "--folder", str(folder)]
        process = subprocess.Popen(  # noqa: ASYNC220  # it starts at once
            command, stdout=file, stderr=file, start_new_session=True
        )
    try:
        await fleet.ready("a", len(fleet.servers["a"]))

        async def served() -> bool:
            return (await fleet.jobs(1, fleet.url("a")))[0].status_code == 200

        await fleet.holds(served)  # the edge may have seen that the one before has ended
        yield process, folder, log
    finally:
        # With the proxy itself: after a test that failed it may still have connections to wait for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, 60)


def test_a_dispatcher_that_reloads_under_load_fails_no_job(running):
    async def scenario():
        def change(content):
            with_line()(content)
            content["retry"] |= {"attempts": 9, "base_interval_s": 0.05, "max_interval_s": 0.5}

        async with running({"a": 2}, change=change, service_s=0.02) as fleet, as_a_service(fleet) as service:
            process, folder, log = service
            config, found, done = folder / "haproxy.cfg", Counter(), asyncio.Event()

            async def user():
                while not done.is_set():
                    found[(await fleet.jobs(1, fleet.url("a")))[0].status_code] += 1

            users = [asyncio.create_task(user()) for _ in range(5)]
            for i in range(2):
                before = sum(found.values())
                config.write_text(config.read_text() + f"# change {i}\n")
                await fleet.holds(lambda i=i: log.read_text().count("Loading success") == i + 2)
                await fleet.holds(lambda before=before: sum(found.values()) > before + 30)
            good = config.read_text()
            config.write_text(good.replace("balance leastconn", "balance by magic"))
            await fleet.holds(lambda: "HAProxy refuses it" in log.read_text())
            assert "the dispatcher goes on as it was" in log.read_text()
            config.write_text(good)
            done.set()
            await asyncio.gather(*users)
            assert set(found) == {200}
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0

    asyncio.run(scenario())


def test_a_killed_dispatcher_costs_the_jobs_that_it_had_and_the_others_go_elsewhere(running):
    async def scenario():
        def change(content):
            with_line()(content)
            content["retry"] |= {"attempts": 9, "base_interval_s": 0.1, "max_interval_s": 0.5}

        async with running({"a": 1, "b": 1}, change=change, service_s=0.01) as fleet:
            release = fleet.hold()
            jobs = [asyncio.create_task(fleet.jobs(1, fleet.url("a"))) for _ in range(3)]
            await fleet.line("a", 2)
            fleet.kill("a", "dispatcher")
            lost = [(await job)[0].status_code for job in jobs]
            assert lost == [502] * 3  # the edge cannot tell which of them was begun
            release.set()
            for _ in range(3):
                (response,) = await fleet.jobs(1, fleet.url("a"))
                assert (response.status_code, response.headers["x-stillmotion-region"]) == (200, "b")
            fleet.start_dispatcher("a")
            await fleet.ready("a", 1)

            async def home() -> bool:
                (response,) = await fleet.jobs(1, fleet.url("a"))
                return response.headers["x-stillmotion-region"] == "a"

            await fleet.holds(home)

    asyncio.run(scenario())


def test_with_all_lines_full_a_job_is_refused_and_told_when_to_come_back(running):
    async def scenario():
        def change(content):
            with_line(8.0, spill_max_wait_s=8.0)(content)
            content["service_time_s"] = 4.0
            content["retry"] |= {"attempts": 4, "base_interval_s": 0.01, "max_interval_s": 0.02}

        async with running({"a": 1, "b": 1}, change=change, service_s=0.01) as fleet:
            release = fleet.hold()
            jobs = [asyncio.create_task(fleet.jobs(1, fleet.url("a"))) for _ in range(6)]
            await fleet.line("a", 2)
            await fleet.line("b", 2)
            (response,) = await fleet.jobs(1, fleet.url("a"))
            assert response.status_code == 429
            assert response.headers["retry-after"] in {"12", "13"}  # three jobs of 4 s each, or a little more
            assert response.headers["x-stillmotion-attempts"] == "4"
            release.set()
            assert statuses([(await job)[0] for job in jobs]) == {200: 6}

    asyncio.run(scenario())


def test_jobs_that_come_at_the_same_moment_get_a_server_each(running):
    async def scenario():
        async with running({"a": 2}, service_s=0.01) as fleet:
            for _ in range(100):
                assert statuses(await fleet.jobs(2, fleet.url("a"))) == {200: 2}
            assert [server.refused for server in fleet.servers["a"]] == [0, 0]

    asyncio.run(scenario())
