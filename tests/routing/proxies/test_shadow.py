"""Copies of users' requests: only idle servers animate them, nobody waits for them, and the clips are compared."""

import asyncio
import contextlib

import pytest

from laboratory.local.clips import CLIPS
from loadtests.replay import Replay, arrivals
from loadtests.timed import Timed
from routing.dispatcher.runtime import set_servers
from routing.envoy.files import edge_folder
from routing.errors import InputError
from routing.jobs import Jobs
from routing.rollout.counters import Growth, Pages
from routing.rollout.shadow import Shadow

FORM = {"prompt": "a red circle moves up", "format": "mp4"}
FILES = {"image": ("picture.png", b"\x89PNG\r\n\r\n\x00\xff", "image/png")}


@contextlib.asynccontextmanager
async def copied(running, port, gpus=4, candidates=1, **more):
    """A region whose edge copies each job, whose last servers have the candidate, and who takes the copies."""
    settings = {"share": 1.0, "receiver": f"127.0.0.1:{port}"}
    async with running({"a": gpus}, service_s=0.05, shadow=settings, **more) as fleet:
        at, addresses = fleet.root / "a" / "dispatcher", [one.address for one in fleet.servers["a"]]
        stable, new = addresses[: gpus - candidates], addresses[gpus - candidates :]
        assert await asyncio.to_thread(set_servers, at, stable, drain_s=30) == set()
        await asyncio.to_thread(set_servers, at, stable, candidates=new)
        await fleet.ready("a", gpus)
        for server in fleet.servers["a"]:
            server.answer = CLIPS["moving"]
        page = f"http://{fleet.places['a'].dispatchers[0].admin}"
        with Shadow([page], fleet.fleet.jobs, 30.0).listening(settings["receiver"]) as shadow:
            yield fleet, shadow, page


async def post(fleet, **headers):
    return await fleet.client.post(fleet.url("a"), data=FORM, files=FILES, headers=headers)


def counted(shadow):
    """Copies by what became of them."""
    lines = [line for line in shadow.metrics().splitlines() if "{" in line]
    return {line.split('"')[1]: int(line.split()[-1]) for line in lines}


async def until(fleet, shadow, outcome):
    """Send jobs, one after the other, until one more copy came to this; how many it took."""
    before = counted(shadow)
    for jobs in range(1, 50):
        assert (await post(fleet)).status_code == 200
        # A copy of a job that the candidate has finds no idle candidate.
        await fleet.holds(lambda jobs=jobs: sum(counted(shadow).values()) == sum(before.values()) + jobs)
        if counted(shadow)[outcome] > before[outcome]:
            return jobs
    raise AssertionError(counted(shadow))


def test_both_versions_animate_a_copy_and_a_candidate_with_black_clips_is_found(running, free_ports):
    async def scenario():
        async with copied(running, *free_ports(1)) as (fleet, shadow, page):
            growth, source = Growth(), Pages([page])
            growth.take(await asyncio.to_thread(source.read))
            jobs = await until(fleet, shadow, "alike")
            found = shadow.clips()
            assert (found.compared, found.wrong) == (1, 0)
            assert "100.0 dB from the stable version's" in found.text
            lines = (await fleet.client.get(f"{page}/jobs")).text.splitlines()
            copies = [line for line in lines if 'jobs_total{version="shadow"' in line]
            assert sum(int(line.split()[-1]) for line in copies if 'code="200"' in line) == 2
            fleet.servers["a"][3].answer = CLIPS["black"]
            jobs += await until(fleet, shadow, "wrong")
            jobs += await until(fleet, shadow, "wrong")
            assert shadow.clips().wrong == 2
            assert "the candidate's clip is blank and still" in shadow.clips().text
            # Where the stable version's is blank, it is not the candidate's that is wrong.
            for server in fleet.servers["a"]:
                server.answer = CLIPS["moving"] if server is fleet.servers["a"][3] else CLIPS["black"]
            jobs += await until(fleet, shadow, "unusable")
            assert shadow.clips().wrong == 2
            # Copies are not counted among theirs.
            growth.take(await asyncio.to_thread(source.read))
            assert growth.tally("stable").jobs + growth.tally("candidate").jobs == jobs

    asyncio.run(scenario())


def test_nobody_waits_behind_a_copy_while_a_server_is_idle_and_what_is_begun_is_not_given_up(running, free_ports):
    async def scenario():
        line = {"max_wait_s": 60.0}
        async with copied(running, *free_ports(1), change=lambda content: content.update(queue=line)) as world:
            fleet, _, page = world
            candidate, others = fleet.servers["a"][3], fleet.servers["a"][:3]
            # Ids by the version that they meet.
            drawn = []
            for i in range(40):
                headers = {"x-request-id": f"job-{i}"}
                answer = await fleet.client.post(fleet.dispatcher_url("a"), content=b"job", headers=headers)
                drawn += [f"job-{i}"] if answer.headers["x-stillmotion-version"] == "candidate" else []
            release = fleet.hold()

            async def at(url, **headers):
                return await fleet.client.post(url, data=FORM, files=FILES, headers=headers)

            copy = asyncio.create_task(at(f"{page}/animate", **{"x-stillmotion-version": "candidate"}))
            await fleet.holds(lambda: candidate.busy == 1)
            # The candidate's own users go where a server is idle.
            users = [asyncio.create_task(at(fleet.dispatcher_url("a"), **{"x-request-id": one})) for one in drawn[:2]]
            await fleet.holds(lambda: sum(one.busy for one in others) == 2)
            # A copy leaves the last idle server to users, and waits for none: 429 at once.
            for version in ("stable", "candidate"):
                refused = await fleet.client.post(
                    f"{page}/animate", content=b"", headers={"x-stillmotion-version": version}
                )
                assert refused.status_code == 429
            users += [asyncio.create_task(at(fleet.dispatcher_url("a"), **{"x-request-id": one})) for one in drawn[2:5]]
            await fleet.holds(lambda: sum(one.busy for one in others) == 3)
            release.set()
            answers = await asyncio.gather(copy, *users)
            assert {one.status_code for one in answers} == {200}
            assert max(one.most for one in fleet.servers["a"]) == 1
            assert sum(one.refused for one in fleet.servers["a"]) == 0

    asyncio.run(scenario())


def test_copies_that_nobody_takes_cost_users_nothing(running, free_ports):
    async def scenario():
        settings = {"share": 1.0, "receiver": f"127.0.0.1:{free_ports(1)[0]}"}
        async with running({"a": 2}, service_s=0.01, shadow=settings) as fleet:
            assert {(await post(fleet)).status_code for _ in range(5)} == {200}
            assert await fleet.counter("a", r"cluster\.shadow\.upstream_rq_total") == 0
            # A user reaches no server by saying which version the job is for.
            assert (await post(fleet, **{"x-stillmotion-version": "candidate"})).status_code == 200

    asyncio.run(scenario())


def test_an_address_that_is_taken_is_named(free_ports):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (
        Shadow([], Jobs(), 1.0).listening(address),
        pytest.raises(InputError, match=r"data_plane\.shadow: nobody can listen at"),
        Shadow([], Jobs(), 1.0).listening(address),
    ):
        pass


def test_what_an_edge_logs_can_be_sent_once_more(running):
    """Envoy writes its log every ten seconds."""

    async def scenario():
        async with running({"a": 1, "b": 1}, service_s=0.01) as fleet:
            for size in (1000, 5000):
                assert (await fleet.client.post(fleet.url("a"), content=bytes(size))).status_code == 200
            assert (await fleet.client.get(fleet.url("a", "/ui"))).status_code == 200
            log = edge_folder(fleet.root, "a") / "log.txt"
            await fleet.holds(lambda: log.read_text().count('"method":"GET"') == 1)
            replay = Replay(logs=(str(log),))
            found = await asyncio.to_thread(arrivals, replay, fleet.fleet, 60.0, Timed(1.0))
            assert [(one.region, one.size) for one in found] == [("a", 1000), ("a", 5000)]
            assert 0 == found[0].at_s < found[1].at_s < 60

    asyncio.run(scenario())
