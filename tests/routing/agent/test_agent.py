"""What an agent writes, what it tells control loops, and what it leaves as it is."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest
import yaml

from routing.agent.agent import Agent, ControlLoop, measure_round_trips
from routing.control.rows import Row
from routing.fleet import Fleet
from routing.proxies import write_fleet
from routing.schema import validated
from routing.table import RoutingTable

CONTENT = {
    "regions": {"a": {"gpus": 4}, "b": {"gpus": 2}, "c": {"gpus": 2}},
    "latency_ms": {"a": {"b": 20, "c": 30}, "b": {"c": 20}},
    "service_time_s": 0.5,
    "rings_ms": [50],
    "thresholds": [{"load": 0.75, "ring": 1}],
    "target_load": 0.75,
    "stale_after_s": 5,
    "data_plane": {
        "places": {
            "a": {"edge": "203.0.113.1:443", "dispatchers": [{"address": "10.1.0.1:8444", "gpus": 4}]},
            "b": {"edge": "203.0.113.2:443", "dispatchers": [{"address": "10.2.0.1:8444", "gpus": 2}]},
            "c": {"edge": "203.0.113.3:443", "dispatchers": [{"address": "10.3.0.1:8444", "gpus": 2}]},
        }
    },
}
URLS = ("http://10.0.0.1:9900", "http://10.0.0.2:9900")


def row(version, home, epoch=1, **more):
    return Row(region="a", epoch=epoch, version=version, shares={"a": home, "b": 1 - home}, **more)


class World:
    """An edge's files, and control loops that answer what a test says."""

    def __init__(self, folder, loops=1) -> None:
        self.fleet = validated(Fleet, CONTENT)
        home = {name: {name: 1.0} for name in self.fleet.names}
        write_fleet(folder, self.fleet, RoutingTable(generated_at=datetime(2025, 1, 31, tzinfo=UTC), shares=home))
        self.folder, self.told, self.now = folder / "a" / "edge", [], 100.0
        self.answers, self.reports, self.urls = dict.fromkeys(URLS), [], URLS[:loops]
        self.agent = self.start()

    def start(self):
        transport = httpx.MockTransport(self._answer)
        loops = [ControlLoop(url, self.fleet, "a", 0.0, transport=transport) for url in self.urls]
        self.agent = Agent(self.fleet, "a", self.folder, loops, self.told.append, lambda: self.now)
        return self.agent

    def _answer(self, request):
        url = f"{request.url.scheme}://{request.url.netloc.decode()}"
        if request.method == "PUT":
            self.reports.append((url, Row.from_json(request.content.decode(), self.fleet, "a")))
            return httpx.Response(204)
        answer = self.answers[url]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Row):
            tag = f"{hash(answer.to_json())}"
            if request.url.params["after"] == tag:
                return httpx.Response(304)
            return httpx.Response(200, text=answer.to_json(), headers={"etag": f'"{tag}"'})
        return answer or httpx.Response(503, text="starting")

    def looks(self, count=1):
        for _ in range(count):
            asyncio.run(self.agent.once())
            self.now += 1.0

    def read(self, name):
        return yaml.safe_load((self.folder / name).read_text())["resources"][0]

    def weights(self):
        rows = self.read("endpoints.yaml")["endpoints"]
        return {one["locality"]["zone"]: one["load_balancing_weight"] for one in rows if not one["priority"]}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_row_and_its_delay_come_into_the_files_of_the_edge(world):
    world.answers[URLS[0]] = row(2, 0.8, delay_share=0.25)
    world.looks()
    assert world.weights() == {"a": 800_000, "b": 200_000}
    assert world.read("runtime.yaml")["layer"]["stillmotion.delay.share"]["numerator"] == 250_000
    assert world.agent.seen.row.version == 2
    world.answers[URLS[0]] = row(3, 0.7)
    world.looks(2)
    assert world.weights() == {"a": 700_000, "b": 300_000}
    assert not world.told


def test_neither_first_attempts_nor_retries_go_to_a_drained_region(world):
    world.answers[URLS[0]] = row(2, 1.0, drained=("c",))
    world.looks()
    assert {one["locality"]["zone"] for one in world.read("endpoints.yaml")["endpoints"]} == {"a", "b"}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.ConnectError("refused"), "does not answer"),
        (httpx.Response(503, text="starting"), "answers 503: starting"),
        (httpx.Response(200, text="<html>"), "gives no row of this fleet: line 1: is no JSON"),
        (httpx.Response(200, text='{"region": "a"}'), "gives no row of this fleet"),
        (httpx.Response(200, text=json.dumps({**row(9, 1.0).model_dump(), "shares": {"mars": 1.0}})), "mars is none"),
    ],
)
def test_what_a_loop_cannot_say_changes_nothing_and_is_told_once(world, answer, text):
    world.answers[URLS[0]] = row(2, 0.8)
    world.looks()
    before = world.weights()
    world.answers[URLS[0]] = answer
    world.looks(20)
    assert world.weights() == before
    assert len(world.told) == 1
    assert text in world.told[0]
    world.answers[URLS[0]] = row(3, 0.6)
    world.looks(8)
    assert world.weights() == {"a": 600_000, "b": 400_000}
    assert len(world.told) == 2
    assert "well again" in world.told[1]


def test_a_loop_that_has_lost_its_table_is_told_what_is_in_use_and_is_not_gone_by(world):
    world.answers[URLS[0]] = row(500, 0.52)
    world.looks()
    world.answers[URLS[0]] = row(1, 1.0, warming=True, not_ready="warming up")
    world.looks(3)
    assert world.weights() == {"a": 520_000, "b": 480_000}
    assert world.reports[0] == (URLS[0], row(500, 0.52))
    # It has started, with a table of its own: older than what it gave once, and so it is told again.
    world.answers[URLS[0]] = row(3, 1.0)
    world.looks(30)
    assert world.weights() == {"a": 520_000, "b": 480_000}
    assert len(world.reports) >= 2
    world.answers[URLS[0]] = row(501, 0.6, epoch=2)
    world.looks(12)
    assert world.weights() == {"a": 600_000, "b": 400_000}


def test_an_agent_that_starts_again_knows_what_is_in_use(world):
    world.answers[URLS[0]] = row(500, 0.52)
    world.looks()
    world.answers[URLS[0]] = row(1, 1.0, warming=True, not_ready="warming up")
    world.start()
    world.looks(2)
    assert world.reports[0] == (URLS[0], row(500, 0.52))
    assert world.weights() == {"a": 520_000, "b": 480_000}
    (world.folder / "row.json").write_text("{")
    assert world.start().seen.row is None


def test_the_second_loop_is_gone_by_while_the_first_is_away_and_warms_up(tmp_path):
    world = World(tmp_path, loops=2)
    world.answers = {URLS[0]: row(500, 0.5), URLS[1]: row(20, 0.6)}
    world.looks()
    assert world.weights()["a"] == 500_000
    world.answers[URLS[0]] = None
    world.looks(8)
    assert world.weights()["a"] == 600_000
    world.answers[URLS[0]] = row(1, 1.0, warming=True, not_ready="warming up")
    world.looks(10)
    assert world.weights()["a"] == 600_000
    assert (URLS[0], row(500, 0.5)) in world.reports  # it went back, and is told the last that it gave
    world.answers[URLS[0]] = row(501, 0.55, epoch=2)
    world.looks(8)
    assert world.weights()["a"] == 550_000


def test_round_trips_to_this_machine_are_not_measured_since_they_are_emulated():
    content = json.loads(json.dumps(CONTENT))
    content["data_plane"]["places"]["b"]["dispatchers"][0]["address"] = "127.0.0.1:1"
    content["data_plane"]["places"]["c"]["dispatchers"][0]["address"] = "127.0.0.2:1"
    assert asyncio.run(measure_round_trips(validated(Fleet, content), "a")) == {}
