"""Two versions of the model behind one dispatcher: who gets which, and what is counted of each."""

import asyncio
import contextlib

import pytest

from routing.dispatcher.runtime import set_servers
from routing.errors import InputError
from routing.rollout.counters import Growth, Pages

IDS = [f"job-{i}" for i in range(200)]


@contextlib.asynccontextmanager
async def split(running, gpus=4, candidates=1, **more):
    """A region whose last servers have the candidate."""
    async with running({"a": gpus}, edges=[], service_s=0.005, **more) as fleet:
        at, addresses = fleet.root / "a" / "dispatcher", [one.address for one in fleet.servers["a"]]
        stable, new = addresses[: gpus - candidates], addresses[gpus - candidates :]
        assert await asyncio.to_thread(set_servers, at, stable, drain_s=30) == set()
        await asyncio.to_thread(set_servers, at, stable, candidates=new)
        await fleet.ready("a", gpus)  # the control loop counts both
        yield fleet, at


async def versions(fleet, ids, **headers):
    """The version that each id meets; one job after the other."""
    found = []
    for one in ids:
        answer = await fleet.client.post(
            fleet.dispatcher_url("a"), content=b"job", headers={"x-request-id": one, **headers}
        )
        assert answer.status_code == 200
        found.append(answer.headers["x-stillmotion-version"])
    return found


def test_the_candidate_gets_its_share_of_the_jobs_and_a_request_id_meets_the_same_version_each_time(running):
    async def scenario():
        async with split(running) as (fleet, at):
            first = await versions(fleet, IDS)
            assert 30 <= first.count("candidate") <= 70  # a quarter, as it has of the servers
            assert await versions(fleet, IDS) == first
            assert fleet.servers["a"][3].finished == 2 * first.count("candidate")
            # With more servers it has all that it had, and more.
            addresses = [one.address for one in fleet.servers["a"]]
            assert await asyncio.to_thread(set_servers, at, addresses[:2], drain_s=30) == set()
            await asyncio.to_thread(set_servers, at, addresses[:2], candidates=addresses[2:])
            await fleet.ready("a", 4)
            more = await versions(fleet, IDS)
            assert all(now == "candidate" for now, then in zip(more, first, strict=True) if then == "candidate")
            assert 75 <= more.count("candidate") <= 125
            # And gives them back.
            assert await asyncio.to_thread(set_servers, at, addresses, drain_s=30) == set()
            await fleet.ready("a", 4)
            assert set(await versions(fleet, IDS[:50])) == {"stable"}

    asyncio.run(scenario())


def test_each_server_has_one_job_and_what_finds_no_room_at_the_candidate_waits_in_the_one_line(running):
    async def scenario():
        async with split(running, change=lambda content: content.update(queue={"max_wait_s": 60.0})) as (fleet, _):
            met = dict(zip(IDS, await versions(fleet, IDS), strict=True))
            drawn = [one for one in IDS if met[one] == "candidate"][:12]
            release = fleet.hold()

            async def post(name):
                return await fleet.client.post(
                    fleet.dispatcher_url("a"), content=b"job", headers={"x-request-id": name}
                )

            jobs = [asyncio.create_task(post(name)) for name in drawn]
            # One at the candidate and one that waits for it; the other ten at the three others and in their line.
            await fleet.holds(lambda: all(one.busy for one in fleet.servers["a"]))
            await fleet.line("a", 8)
            release.set()
            answers = await asyncio.gather(*jobs)
            assert {one.status_code for one in answers} == {200}
            of = [one.headers["x-stillmotion-version"] for one in answers]
            assert of.count("candidate") == 2
            assert max(one.most for one in fleet.servers["a"]) == 1
            assert sum(one.refused for one in fleet.servers["a"]) == 0

    asyncio.run(scenario())


def test_jobs_are_counted_by_version_and_a_version_can_be_named(running):
    async def scenario():
        async with split(running) as (fleet, _):
            admin = fleet.places["a"].dispatchers[0].admin
            growth, source = Growth(), Pages([f"http://{admin}"])
            growth.take(await asyncio.to_thread(source.read))
            assert set(await versions(fleet, IDS[:20], **{"x-stillmotion-version": "stable"})) == {"stable"}
            assert set(await versions(fleet, IDS[:10], **{"x-stillmotion-version": "candidate"})) == {"candidate"}
            fleet.servers["a"][3].dies_at = 0.5
            lost = await fleet.client.post(
                fleet.dispatcher_url("a"), content=b"job", headers={"x-stillmotion-version": "candidate"}
            )
            assert lost.status_code == 502
            growth.take(await asyncio.to_thread(source.read))
            stable, candidate = growth.tally("stable"), growth.tally("candidate")
            assert (stable.jobs, stable.failed, stable.timed) == (20, 0, 20)
            assert (candidate.jobs, candidate.failed, candidate.timed) == (11, 1, 10)
            assert stable.slower(fleet.fleet.service_time_s * 10) == 0

    asyncio.run(scenario())


def test_a_server_has_one_version(tmp_path):
    (tmp_path / "haproxy.cfg").write_text("")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1 cannot have both versions"):
        set_servers(tmp_path, ["127.0.0.1:1"], candidates=["127.0.0.1:1"])
    with pytest.raises(InputError, match="no list of the servers of gpus"):
        set_servers(tmp_path, ["127.0.0.1:1"])
