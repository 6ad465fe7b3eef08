"""The example fleet, and what holds for each plan, seen from its table alone."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from routing.fleet import Fleet, Region, Threshold, load_fleet
from routing.load import Load
from routing.planner import plan
from routing.planner.problem import EPSILON_RPS
from routing.table import RoutingTable

from .. import ports
from ..waiting import until

NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]


class FakeServer(ThreadingHTTPServer):
    """A machine of which a test says what it answers.

    Attributes:
        answer: takes the path, with its query, and gives (status, text); or is one of `hang` (no answer), `drip`
            (one byte now and then) and `close` (ends the connection at once).
        asked: the paths, as they came.
    """

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = ports.listening()
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.answer, self.asked = answer, []
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self):
        if not self.ended.is_set():
            self.ended.set()
            self.shutdown()
            self.server_close()

    def handle_error(self, request, client_address):
        pass  # who asked has gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.server.ended.is_set():  # connections that were kept end as well
            self.close_connection = True
            return
        self.server.asked.append(self.path)
        answer = self.server.answer(self.path) if callable(self.server.answer) else self.server.answer
        if answer == "hang":
            self.server.ended.wait(120)
        elif answer == "close":
            self.close_connection = True
        elif answer == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"#")
        else:
            status, text = answer
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_server():
    """Starts servers on loopback; they end with the test."""
    started = []

    def start(answer):
        started.append(FakeServer(answer))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def free_port():
    """A port on loopback at which nobody listens."""
    return ports.free_port()


another_free_port = free_port


@pytest.fixture
def eventually():
    """Waits until something is true, and gives it; long, for machines that have other work."""

    def wait(check, seconds=120.0):
        return until(check, limit_s=seconds)

    return wait


@pytest.fixture(scope="session")
def examples() -> Path:
    """Folder of the example files."""
    return ROOT / "docs" / "examples"


@pytest.fixture(scope="session")
def example_fleet(examples):
    return load_fleet(examples / "fleet.yaml")


@pytest.fixture
def fleet_file(examples, tmp_path):
    """Writes the example fleet after a change of its content, or a text, and gives the path."""

    def write(change=None, text=None) -> Path:
        content = yaml.safe_load((examples / "fleet.yaml").read_text())
        if change is not None:
            change(content)
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False) if text is None else text)
        return path

    return write


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def see():
    """What a table does with a load."""
    return Seen


@pytest.fixture(scope="session")
def fleet_of():
    """Makes fleets of a matrix of round trips."""
    return _fleet_of


def _fleet_of(latency_ms, thresholds=((0.75, 1),), rings_ms=(400.0,), gpus=None, **settings):
    """A fleet whose regions are a, b, c... from a list of rows of round trips; the diagonal is not read."""
    names = [f"{chr(97 + i % 26)}{i // 26 or ''}" for i in range(len(latency_ms))]
    return Fleet(
        regions={name: Region(gpus=(gpus or {}).get(name, 100)) for name in names},
        latency_ms={
            one: {other: float(latency_ms[i][j]) for j, other in enumerate(names) if i != j}
            for i, one in enumerate(names)
        },
        service_time_s=1.0,
        rings_ms=rings_ms,
        thresholds=tuple(Threshold(load=load, ring=ring) for load, ring in thresholds),
        **{"target_load": min(load for load, _ in thresholds)} | settings,
    )


class Seen:
    """What a table does with a load: requests per second from region to region, and what follows from them."""

    def __init__(self, fleet: Fleet, load: Load, table: RoutingTable) -> None:
        self.fleet, self.table = fleet, table
        self.names = fleet.names
        self.demand = {name: max(load.demand_rps[name], EPSILON_RPS) for name in self.names}
        self.capacity = {n: rps if rps >= EPSILON_RPS else 0.0 for n, rps in load.capacity_rps.items()}
        self.rps = {s: {d: table.share(s, d) * self.demand[s] for d in self.names} for s in self.names}
        self.served = {d: sum(self.rps[s][d] for s in self.names) for d in self.names}
        self.of_others = {d: self.served[d] - self.rps[d][d] for d in self.names}
        self.tolerance = 1e-8 * max(1.0, *self.demand.values(), *self.capacity.values())
        coolest = fleet.thresholds[0].load
        least = 1e-12 * max(1e3, *self.demand.values(), *self.capacity.values())
        self.hot = {n for n in self.names if self.demand[n] > coolest * self.capacity[n] + least}
        self.room = {
            n: 0.0 if n in self.hot else fleet.target_load * self.capacity[n] - self.served[n] for n in self.names
        }

    def away(self, source):
        """(destination, ring, requests per second) of what leaves home."""
        for to in self.names:
            if to != source and self.rps[source][to] > self.tolerance:
                yield to, self.fleet.ring(source, to), self.rps[source][to]

    def cost(self):
        return sum(rps * self.fleet.latency(source, to) for source in self.names for to, _, rps in self.away(source))


def check_any_plan(seen: Seen, load: Load) -> None:
    """What holds for each solver."""
    for source in seen.names:
        assert abs(sum(seen.table.shares[source].values()) - 1) <= 1e-9
    assert abs(sum(seen.served.values()) - sum(seen.demand.values())) <= seen.tolerance
    for name in seen.names:
        if seen.of_others[name] > seen.tolerance:  # none is pushed over its target by others
            limit = max(seen.fleet.target_load * seen.capacity[name], seen.demand[name])
            assert seen.served[name] <= limit + seen.tolerance
        over = seen.served[name] - seen.capacity[name]
        expected = min(max(0.0, over), load.demand_rps[name])
        assert abs(seen.table.unserved_rps[name] - expected) <= seen.tolerance
        for _, ring, _ in seen.away(name):
            assert ring is not None
            assert ring <= seen.fleet.farthest_ring


def check_plan(seen: Seen) -> None:
    fleet = seen.fleet
    for source in seen.names:
        if source not in seen.hot:  # a cool region keeps its users' traffic, whatever it takes of others
            assert abs(seen.table.share(source, source) - 1) <= 1e-9
        else:
            assert seen.of_others[source] <= seen.tolerance
        for _, ring, _ in seen.away(source):  # a nearer region with room is used before a farther one
            assert all(seen.room[n] <= seen.tolerance for nearer in fleet.rings(source)[1:ring] for n in nearer)
        beyond = 0  # the hotter, the farther: only what is above a threshold goes to the rings that it unlocks
        for threshold in fleet.thresholds:
            above = max(0.0, seen.demand[source] - threshold.load * seen.capacity[source])
            assert sum(rps for _, ring, rps in seen.away(source) if ring > beyond) <= above + seen.tolerance
            beyond = threshold.ring
        for threshold in fleet.thresholds:  # it goes on until none is hot or nothing can move
            if seen.served[source] > threshold.load * seen.capacity[source] + seen.tolerance and source in seen.hot:
                within = [n for ring in fleet.rings(source)[1 : threshold.ring + 1] for n in ring]
                assert all(seen.room[n] <= seen.tolerance for n in within)


def check_moves(seen: Seen) -> None:
    """Moves, from all traffic at home on, lead to the shares."""
    rps = {s: {d: seen.demand[s] if s == d else 0.0 for d in seen.names} for s in seen.names}
    for move in seen.table.moves:
        assert move.from_region != move.to
        assert move.ring == seen.fleet.ring(move.source, move.to)
        rps[move.source][move.from_region] -= move.rps
        rps[move.source][move.to] += move.rps
    for source in seen.names:
        for to in seen.names:
            assert abs(rps[source][to] - seen.rps[source][to]) <= seen.tolerance


@pytest.fixture(scope="session")
def planned():
    """Plans, and makes all checks that a plan must pass."""
    return _planned


def _planned(fleet: Fleet, load: Load, **options) -> Seen:
    seen = Seen(fleet, load, plan(fleet, load, generated_at=NOW, **options))
    check_any_plan(seen, load)
    check_plan(seen)
    check_moves(seen)
    return seen
