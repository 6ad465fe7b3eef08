"""The loop's pages, as agents, operators and programs use them."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest

from routing.control.controller import Controller
from routing.control.journal import Journal
from routing.control.loop import Loop
from routing.control.publishing import FolderPublisher, Saved
from routing.control.status import status
from routing.control.switches import Switches
from routing.control.web import Pages, listening, serving
from routing.metrics.observation import Observation, RegionSeen

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
TOKEN = "a-token-of-an-operator"  # noqa: S105  # of this test


class World:
    """A loop with its pages, whose rounds a test begins."""

    def __init__(self, fleet, folder, token=TOKEN):
        self.now, self.live = 100.0, ""
        self.demand = {name: 0.5 * fleet.capacity_rps(name) for name in fleet.names}
        self.fleet = fleet
        self.journal = Journal(None, lambda: NOW, lambda _: None)
        controller = Controller(fleet)
        home = controller.at_home().model_copy(update={"generated_at": NOW})
        switches = Switches(folder, fleet, self.journal)
        publisher, clock = FolderPublisher(folder), lambda: self.now
        self.loop = Loop(controller, self, publisher, self.journal, Saved(home, "new"), 2.0, switches, clock)
        shown = lambda: status(fleet, self.loop.snapshot, self.journal, self.now, 2.0, switches)  # noqa: E731
        self.pages = Pages(fleet, self.loop, switches, shown, lambda: b"x 1\n", lambda: self.live, token)

    async def collect(self):
        return Observation(
            {
                name: RegionSeen(demand_rps=rps, over_s=2.0, capacity_rps=self.fleet.capacity_rps(name), gpus_ready=40)
                for name, rps in self.demand.items()
            }
        )

    async def rounds(self, count):
        for _ in range(count):
            self.now += 2.0
            await self.loop.round()

    def client(self):
        transport = httpx.ASGITransport(self.pages.app())
        return httpx.AsyncClient(transport=transport, base_url="http://loop", timeout=60)


@pytest.fixture
def world(make_fleet, tmp_path):
    return World(make_fleet(40, 40, 40, never={"a": ["c"]}), tmp_path)


def test_pages_answer_and_health_follows_the_loop(world):
    async def go():
        async with world.client() as client:
            early = await client.get("/readyz")
            await world.rounds(10)
            paths = ("/", "/status.json", "/metrics", "/livez", "/readyz", "/nothing")
            found = [await client.get(path) for path in paths]
            world.demand = {}
            await world.rounds(10)
            blind = await client.get("/readyz")
            world.live = "no round for 99 s"
            return early, found, blind, await client.get("/livez"), await client.get("/readyz")

    early, found, blind, livez, readyz = asyncio.run(go())
    assert (early.status_code, early.text) == (503, "no round has ended yet\n")
    assert [one.status_code for one in found] == [200] * 5 + [404]
    assert found[0].headers["content-security-policy"].startswith("default-src 'none'")
    assert found[1].json()["regions"]["a"]["gpus_ready"] == 40
    assert found[2].headers["content-type"].startswith("text/plain; version=")
    assert (blind.status_code, blind.text) == (503, "3 of 3 regions not heard of for 15 s\n")
    assert (livez.status_code, readyz.status_code, livez.text) == (503, 503, "no round for 99 s\n")


def test_a_row_is_given_when_it_changes_and_only_to_those_it_is_new_for(world):
    async def go():
        async with world.client() as client:
            await world.rounds(10)
            first = await client.get("/rows/a")
            tag = first.headers["etag"].strip('"')
            again = await client.get("/rows/a", params={"after": tag, "wait": "0"})
            other = (await client.get("/rows/c")).headers["etag"].strip('"')
            waiting = asyncio.create_task(client.get("/rows/a", params={"after": tag, "wait": "30"}))
            still = asyncio.create_task(client.get("/rows/c", params={"after": other, "wait": "30"}))
            await asyncio.sleep(0.05)
            world.demand["a"] = 120.0
            for _ in range(10):
                await world.rounds(1)
            changed = await waiting
            left = not still.done()
            still.cancel()
            return first, again, changed, left

    first, again, changed, left = asyncio.run(go())
    assert first.json() == {
        "region": "a",
        "epoch": 1,
        "version": 1,
        "shares": {"a": 1.0},
        "delay_share": 0.0,
        "drained": [],
        "warming": False,
        "not_ready": "",
    }
    assert (again.status_code, again.content) == (304, b"")
    assert changed.json()["version"] > 1 or changed.json()["delay_share"] > 0
    assert left  # a change of a's row is no news for c


def test_tags_of_a_loop_that_has_started_again_are_others(make_fleet, tmp_path):
    async def tag():
        async with World(make_fleet(4, 4), tmp_path).client() as client:
            return (await client.get("/rows/a")).headers["etag"]

    assert asyncio.run(tag()) != asyncio.run(tag())


@pytest.mark.parametrize(
    ("path", "content", "status", "text"),
    [
        ("/rows/mars", "{}", 400, "mars is none of the fleet's regions"),
        ("/rows/a", "{", 400, "is no JSON"),
        ("/rows/a", "[]", 400, "should hold keys and values"),
        ("/rows/a", {"region": "b", "epoch": 1, "version": 1, "shares": {"b": 1.0}}, 400, "is b, and should be a"),
        ("/rows/a", {"region": "a", "epoch": 1, "version": 1, "shares": {"a": 0.5}}, 400, "shares: sum to 0.5"),
        ("/rows/a", {"region": "a", "epoch": 1, "version": 1, "shares": {"x": 1.0}}, 400, "shares.x: x is none"),
        ("/rows/a", {"region": "a", "epoch": 1, "version": 1, "shares": {"c": 1.0}}, 400, "never.a of the fleet"),
        ("/rows/a", "x" * (2**20 + 1), 400, "has more than 1 MiB"),
        ("/round-trips/a", {"a": 1.0}, 400, "a: is no other region of the fleet"),
        ("/round-trips/a", {"b": -1.0}, 400, "b: is -1.0, and should be milliseconds"),
        ("/round-trips/a", [1], 400, "should hold milliseconds by region"),
        ("/round-trips/a", {"b": 12.5}, 204, ""),
    ],
)
def test_reports_that_cannot_be_are_one_line_and_change_nothing(world, path, content, status, text):
    async def go():
        async with world.client() as client:
            body = content if isinstance(content, str) else json.dumps(content)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            return await client.put(path, content=body, headers=headers)

    answer = asyncio.run(go())
    assert answer.status_code == status
    assert text in answer.text
    assert answer.text.count("\n") <= 1
    assert world.loop.snapshot.table.version == 1


def test_switches_take_the_token_and_show_on_the_page(world):
    async def go(path, token):
        async with world.client() as client:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return await client.post(path, headers=headers), await client.get("/")

    for token in ("", "another", TOKEN[:-1]):
        answer, page = asyncio.run(go("/switches/freeze", token))
        assert (answer.status_code, "the token is missing or another" in answer.text) == (403, True)
        assert "Switched:" not in page.text
    answer, page = asyncio.run(go("/switches/drain-region/b", TOKEN))
    assert (answer.status_code, answer.text) == (200, "b is drained\n")
    assert "Switched:</b> b is drained" in page.text
    answer, _ = asyncio.run(go("/switches/drain-region/mars", TOKEN))
    assert (answer.status_code, "mars is none of the fleet" in answer.text) == (400, True)
    answer, _ = asyncio.run(go("/switches/explode", TOKEN))
    assert answer.status_code == 400
    answer, page = asyncio.run(go("/switches/resume/b", TOKEN))
    assert answer.text == "nothing is frozen or drained\n"
    assert world.journal.recent[0]["text"] == "b is resumed by an operator"


def test_a_loop_without_a_token_takes_no_orders_and_takes_reports(make_fleet, tmp_path):
    world = World(make_fleet(4, 4), tmp_path, token=None)

    async def go():
        async with world.client() as client:
            return await client.post("/switches/freeze"), await client.put("/round-trips/a", content='{"b": 9.0}')

    order, report = asyncio.run(go())
    assert (order.status_code, report.status_code) == (403, 204)
    assert "started without a token" in order.text


def test_agents_that_each_hold_a_connection_keep_nobody_out(world, free_port):
    count = 130  # a hundred were too many once, and /livez failed with them

    async def go():
        async with serving(world.pages.app(), listening(f"127.0.0.1:{free_port}")):
            limits = httpx.Limits(max_connections=None)
            url = f"http://127.0.0.1:{free_port}"
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as client:
                tag = (await client.get("/rows/a")).headers["etag"].strip('"')
                waiting = {"after": tag, "wait": "30"}
                polls = [asyncio.create_task(client.get("/rows/a", params=waiting)) for _ in range(count)]
                await asyncio.sleep(0.5)
                livez = [await client.get("/livez") for _ in range(3)]
                await world.rounds(10)
                return livez, await asyncio.gather(*polls)

    livez, polls = asyncio.run(go())
    assert {one.status_code for one in livez} == {200}
    assert {one.status_code for one in polls} == {200}
