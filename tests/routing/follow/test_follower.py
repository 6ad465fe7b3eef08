"""What a follower writes, and what it leaves as it is."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest
import yaml

from routing.control.published import Published
from routing.envoy.folders import write_fleet
from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.follow.follower import Follower
from routing.follow.servers import name_and_port, resolve
from routing.follow.tables import TableSource
from routing.schema import validated
from routing.table import RoutingTable

CONTENT = {
    "regions": {"a": {"gpus": 4}, "b": {"gpus": 2}},
    "latency_ms": {"a": {"b": 20}},
    "service_time_s": 0.5,
    "rings_ms": [50],
    "thresholds": [{"load": 0.75, "ring": 1}],
    "target_load": 0.75,
    "stale_after_s": 5,
    "data_plane": {
        "places": {
            "a": {"edge": "203.0.113.1:443", "dispatchers": [{"address": "10.1.0.1:8444", "gpus": 4}]},
            "b": {"edge": "203.0.113.2:443", "dispatchers": [{"address": "10.2.0.1:8444", "gpus": 2}]},
        }
    },
}


def table(version, home):
    shares = {"a": {"a": home, "b": 1 - home}, "b": {"b": 1.0}}
    return RoutingTable(version=version, generated_at=datetime(2025, 1, 31, tzinfo=UTC), shares=shares)


class World:
    """A fleet's files, a control loop that is a text, and a name that stands for servers."""

    def __init__(self, folder) -> None:
        self.fleet = validated(Fleet, CONTENT)
        write_fleet(folder, self.fleet, table(1, 1.0))
        self.folder, self.told, self.now = folder, [], 100.0
        self.answer, self.found = None, ()
        self.publish(table(2, 0.8), 0.25)

    def publish(self, one, delay):
        published = Published(table=one, delay_share={"a": delay, "b": 0.0})
        self.answer = httpx.Response(200, text=json.dumps(published.to_dict()))

    def follower(self, role):
        async def found(name, port):
            assert (name, port) == ("gpu", 3000)
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

        transport = httpx.MockTransport(self._answer)
        edge = role == "edge"
        return Follower(
            self.fleet,
            "a",
            self.folder / "a" / role,
            [TableSource("http://10.0.0.1:9900", self.fleet, 1.0, transport)] if edge else (),
            None if edge else ("gpu", 3000),
            found,
            self.told.append,
            lambda: self.now,
        )

    def _answer(self, request):
        assert request.url.path == "/published.json"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def read(self, role, name):
        return yaml.safe_load((self.folder / "a" / role / name).read_text())["resources"][0]

    def weights(self):
        rows = self.read("edge", "endpoints.yaml")["endpoints"]
        return {row["locality"]["zone"]: row["load_balancing_weight"] for row in rows if not row["priority"]}

    def servers(self):
        rows = self.read("ingress", "endpoints.yaml")["endpoints"]
        hosts = [host["endpoint"]["address"]["socket_address"] for row in rows for host in row["lb_endpoints"]]
        return [f"{host['address']}:{host['port_value']}" for host in hosts]

    def limit(self):
        return self.read("ingress", "runtime.yaml")["layer"]["circuit_breakers.jobs.default.max_requests"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def rounds(follower, world, count=1):
    async def go():
        for _ in range(count):
            await follower.round()
            world.now += 1.0

    asyncio.run(go())


def test_a_table_and_its_delay_come_into_the_files_of_an_edge(world):
    follower = world.follower("edge")
    rounds(follower, world)
    assert world.weights() == {"a": 800_000, "b": 200_000}
    assert world.read("edge", "runtime.yaml")["layer"]["stillmotion.delay.share"]["numerator"] == 250_000
    assert follower.seen.version == 2
    world.publish(table(3, 0.7), 0.0)
    rounds(follower, world)
    assert world.weights() == {"a": 700_000, "b": 300_000}
    assert not world.told


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.ConnectError("refused"), "does not answer"),
        (httpx.Response(503, text="starting"), "answers 503"),
        (httpx.Response(200, text="<html>"), "publishes no table of this fleet: line 1: is no JSON"),
        (httpx.Response(200, text='{"table": {}}'), "publishes no table of this fleet"),
        (httpx.Response(200, text='{"table": 1, "delay_share": {}}'), "table: should be keys and values"),
    ],
)
def test_what_a_loop_cannot_say_changes_nothing_and_is_told_once(world, answer, text):
    follower = world.follower("edge")
    rounds(follower, world)
    before = world.weights()
    world.answer = answer
    rounds(follower, world, 20)
    assert world.weights() == before
    assert len(world.told) == 1
    assert text in world.told[0]
    world.publish(table(3, 0.6), 0.0)
    rounds(follower, world, 8)
    assert world.weights() == {"a": 600_000, "b": 400_000}
    assert len(world.told) == 2
    assert "well again" in world.told[1]


def test_a_table_of_another_fleet_is_not_taken(world):
    follower = world.follower("edge")
    shares = {"a": {"mars": 1.0}, "b": {"b": 1.0}}
    world.publish(RoutingTable(version=7, generated_at=datetime.now(UTC), shares=shares), 0.0)
    rounds(follower, world)
    assert world.weights() == {"a": 1_000_000}
    assert "mars is none of the fleet's regions" in world.told[0]


def test_gpu_servers_come_and_go_and_as_many_jobs_are_let_in(world):
    follower = world.follower("ingress")
    assert world.servers() == []
    assert world.limit() == 0
    for found in (("10.1.1.1:3000",), ("10.1.1.1:3000", "10.1.1.2:3000"), ("10.1.1.2:3000",)):
        world.found = found
        rounds(follower, world)
        assert tuple(world.servers()) == found
        assert world.limit() == len(found)
    assert world.told == [
        "1 GPU servers: 1 new, 0 gone",
        "2 GPU servers: 1 new, 0 gone",
        "1 GPU servers: 0 new, 1 gone",
    ]


@pytest.mark.parametrize("found", [(), RoutingError("gpu cannot be looked up (try again)")])
def test_servers_stay_when_their_name_stands_for_none(world, found):
    follower = world.follower("ingress")
    world.found = ("10.1.1.1:3000", "10.1.1.2:3000")
    rounds(follower, world)
    world.found = found
    rounds(follower, world, 10)
    assert len(world.servers()) == world.limit() == 2
    assert len(world.told) == 2


def test_a_file_that_cannot_be_written_does_not_end_it(world):
    follower = world.follower("ingress")
    world.found = ("10.1.1.1:3000",)
    (world.folder / "a" / "ingress" / "endpoints.yaml").unlink()
    rounds(follower, world, 2)
    assert len(world.told) == 1


def test_names_are_looked_up():
    assert "127.0.0.1:3000" in asyncio.run(resolve("localhost", 3000))
    assert asyncio.run(resolve("no-such-name.invalid", 3000)) == ()


def test_a_name_without_a_port_is_none():
    assert name_and_port("gpu.stillmotion:3000") == ("gpu.stillmotion", 3000)
    for text in ("gpu", "gpu:", ":3000", "gpu:0", "gpu:x"):
        with pytest.raises(ValueError, match="no name with a port"):
            name_and_port(text)
