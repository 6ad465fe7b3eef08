"""The agent, an edge and a control loop as programs, as pods have them, and what is left when they die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from laboratory.local.layout import reserve
from routing.agent.agent import ControlLoop
from routing.cli import main
from routing.control.rows import Row
from routing.dispatcher.files import dispatcher_folder
from routing.envoy.files import edge_folder
from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.proxies import Programs, write_fleet
from routing.schema import validated
from routing.table import RoutingTable

from ...waiting import HTTP

STARTED = "2025-01-31T12:00:00+00:00"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """The programs of the proxies; without them there is no edge and no dispatcher."""
    try:
        return Programs.find()
    except RoutingError as error:
        pytest.skip(str(error))


@pytest.fixture
def ports():
    """Seven ports in a row that nobody else is given meanwhile."""
    reservation = reserve(7)
    yield list(range(reservation.first, reservation.first + 7))
    reservation.release()


class Pods:
    """One region as pods have it: a GPU server, its dispatcher, an edge, and an agent beside it."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.gpu, self.edge, edge_admin, self.control, self.page, dispatcher, dispatcher_admin = ports
        self.admin = f"127.0.0.1:{edge_admin}"
        places = {
            "a": {
                "edge": f"127.0.0.1:{self.edge}",
                "admin": self.admin,
                "dispatchers": [
                    {
                        "address": f"127.0.0.1:{dispatcher}",
                        "admin": f"127.0.0.1:{dispatcher_admin}",
                        "servers": [f"127.0.0.1:{self.gpu}"],
                    }
                ],
            },
            "b": {"edge": "127.0.0.1:9", "dispatchers": [{"address": "127.0.0.1:9", "gpus": 1}]},
        }
        content = {
            "regions": {"a": {"gpus": 1}, "b": {"gpus": 1}},
            "latency_ms": {"a": {"b": 20}},
            "service_time_s": 0.2,
            "rings_ms": [50],
            "thresholds": [{"load": 0.75, "ring": 1}],
            "target_load": 0.75,
            "stale_after_s": 3,
            "retry": {"attempts": 8, "base_interval_s": 0.05, "max_interval_s": 0.2},
            "metrics": {"time_limit_s": 0.4},
            "data_plane": {"places": places, "access_log": False},
        }
        self.fleet = validated(Fleet, content)
        (folder / "fleet.yaml").write_text(yaml.safe_dump(content))
        home = RoutingTable.from_json(
            json.dumps({"generated_at": STARTED, "shares": {"a": {"a": 1.0}, "b": {"b": 1.0}}})
        )
        write_fleet(folder / "run", self.fleet, home)
        self.started: list[subprocess.Popen] = []

    def start(self, *arguments: object) -> subprocess.Popen:
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], stdout=log, stderr=log)
        self.started.append(process)
        return process

    def serve(self, service_s: float) -> subprocess.Popen:
        gpu = ("--region", "a", "--serve", f"a-1=127.0.0.1:{self.gpu}", "--service-time", service_s)
        self.start("laboratory.local.standin", *gpu)
        self.start("routing", "proxy", "--folder", dispatcher_folder(self.folder / "run", "a"))
        return self.proxy()

    def proxy(self) -> subprocess.Popen:
        return self.start("routing", "proxy", "--folder", self.of_edge)

    @property
    def of_edge(self) -> Path:
        return edge_folder(self.folder / "run", "a")

    def agent(self, *more: object) -> subprocess.Popen:
        common = ("--fleet", self.folder / "fleet.yaml", "--region", "a", "--folder", self.of_edge)
        return self.start("routing", "agent", *common, "--control", f"http://127.0.0.1:{self.control}", *more)

    def job(self) -> httpx.Response:
        form = {"files": {"image": ("a.png", b"x")}, "data": {"prompt": "moves"}}
        return HTTP.post(f"http://127.0.0.1:{self.edge}/animate", **form, timeout=120)

    def version(self) -> str:
        """Of the table that the edge has, a digest."""
        return stat(self.admin, r"cluster\.jobs\.version_text")

    def until(self, condition, what: str, limit_s: float = 120.0):
        end = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if found := condition():
                    return found
            assert time.monotonic() < end, f"{what}: not after {limit_s} s; {(self.folder / 'log.txt').read_text()}"
            time.sleep(0.1)

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def stat(admin: str, name: str) -> str:
    page = HTTP.get(f"http://{admin}/stats", params={"filter": f"^{name}$"}, timeout=60)
    return page.text.partition(":")[2].strip()


def row(version: int, home: float = 1.0) -> Row:
    away = {} if home == 1.0 else {"b": 1 - home}
    return Row(region="a", epoch=1, version=version, shares={"a": home, **away})


@pytest.fixture
def pods(tmp_path, ports):
    one = Pods(tmp_path, ports)
    try:
        yield one
    finally:
        one.end()


class Publishes(BaseHTTPRequestHandler):
    """A control loop that says what a test sets."""

    def do_GET(self):
        if "after=tag" in self.path:
            time.sleep(0.2)
            self.send_response(304)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"tag"')
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def publishing(port: int, one: Row):
    server = ThreadingHTTPServer(("127.0.0.1", port), Publishes)
    server.text = one.to_json()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def config(pods: Pods) -> str:
    url = f"http://{pods.admin}/config_dump"
    return HTTP.get(url, params={"include_eds": ""}, timeout=60).text


@pytest.mark.slow
def test_an_edge_serves_on_with_the_last_row_when_the_control_loop_and_the_agent_die(pods):
    with publishing(pods.control, row(7, 0.99)):
        agent = pods.agent()
        edge = pods.serve(0.05)
        pods.until(lambda: pods.job().status_code == 200, "jobs are served")
        pods.until(lambda: '"zone": "b"' in config(pods) and "990000" in config(pods), "the row has come")
    before = pods.version()
    agent.kill()
    agent.wait()
    assert [pods.job().status_code for _ in range(10)] == [200] * 10
    # The proxy alone starts again, as a container does: what is in its files is what it had.
    edge.kill()
    edge.wait()
    pods.proxy()
    pods.until(lambda: pods.job().status_code == 200, "the edge is back")
    assert pods.version() == before
    # An agent that starts while there is no control loop leaves the row as it is.
    pods.agent()
    time.sleep(1.5)
    assert [pods.job().status_code for _ in range(5)] == [200] * 5
    assert pods.version() == before


@pytest.mark.slow
def test_an_edge_is_drained_before_it_stops(pods):
    pods.serve(5)
    url = f"http://127.0.0.1:{pods.edge}/readyz"
    pods.until(lambda: HTTP.get(url).status_code == 200, "the edge is ready")
    answers = []
    job = threading.Thread(target=lambda: answers.append(pods.job().status_code))
    job.start()
    pods.until(lambda: stat(pods.admin, r"cluster\.jobs\.upstream_rq_active") == "1", "a job is under way")
    command = [sys.executable, "-m", "routing", "drain", "--admin", pods.admin, "--leave", "0.2"]
    hurried = subprocess.run([*command, "--limit", "0.1"], capture_output=True, text=True, check=False)
    assert hurried.returncode == 1
    assert "1 requests are still in flight after 0.3 s" in hurried.stderr
    assert not answers
    patient = subprocess.run([*command, "--limit", "120"], capture_output=True, text=True, check=False)
    assert patient.returncode == 0, patient.stderr
    job.join(120)
    assert answers == [200]
    assert HTTP.get(url).status_code == 503


def test_an_agent_ends_on_sigterm_and_says_how_it_stands(pods):
    with publishing(pods.control, row(7, 0.9)):
        agent = pods.agent("--listen", f"127.0.0.1:{pods.page}")
        page = f"http://127.0.0.1:{pods.page}"
        pods.until(
            lambda: "stillmotion_agent_table_version 7.0" in HTTP.get(f"{page}/metrics").text,
            "the row came",
        )
        assert HTTP.get(f"{page}/livez").status_code == 200
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--region", "a"), "the following arguments are required: --control"),
        (("--region", "mars", "--control", "http://h:1"), "--region: mars is none of the fleet's regions"),
        (
            ("--region", "a", "--control", "10.1.0.20:9900"),
            "10.1.0.20:9900 is no address such as http://10.1.0.20:9900",
        ),
        (("--region", "a", "--control", "http://h:1", "--folder", "/"), "--folder: / has no endpoints.yaml"),
    ],
)
def test_wrong_use_is_one_line(pods, capsys, arguments, text):
    folder = () if "--folder" in arguments else ("--folder", str(pods.of_edge))
    command = ["agent", "--fleet", str(pods.folder / "fleet.yaml"), *folder, *arguments]
    try:
        status = main(command)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert text in capsys.readouterr().err


def test_once_is_one_look_and_the_command_goes_by_its_old_name_too(pods, capsys):
    with publishing(pods.control, row(7, 0.9)):
        common = ["follow", "--json", "--once", "--fleet", str(pods.folder / "fleet.yaml"), "--region", "a"]
        url = f"http://127.0.0.1:{pods.control}"
        assert main([*common, "--folder", str(pods.of_edge), "--control", url]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"table_epoch": 1, "table_version": 7, "control": url, "problems": []}


def test_the_control_loop_gives_what_agents_take_and_takes_orders_by_its_commands(tmp_path, ports, capsys):
    """The real pages of the real program, though no proxy answers it."""
    one = Pods(tmp_path, ports)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    out = ("--out", tmp_path / "control", "--listen", f"127.0.0.1:{one.control}", "--token-file", token)
    url = f"http://127.0.0.1:{one.control}"
    try:
        one.start("routing", "control", "--fleet", tmp_path / "fleet.yaml", "--interval", 0.5, *out)
        one.until(lambda: HTTP.get(f"{url}/rows/a").status_code == 200, "it gives rows")

        async def ask():
            loop = ControlLoop(url, one.fleet, "a", 0.5, "0123456789abcdef")
            try:
                found = [await loop.poll()]
                await loop.report(row(500, 0.5))
                while found[-1] is None or found[-1].order < (2, 500):
                    found.append(await loop.poll())
                return found
            finally:
                await loop.close()

        found = asyncio.run(ask())
        assert (found[0].order, found[0].warming, found[0].shares) == ((1, 1), True, {"a": 1.0})
        assert (found[-1].order, found[-1].shares) == ((2, 500), {"a": 0.5, "b": 0.5})
        orders = ["--control", url, "--token-file", str(token)]
        assert main(["drain-region", "b", *orders]) == 0
        assert main(["freeze", *orders]) == 0
        assert f"{url}: the table is frozen, b is drained" in capsys.readouterr().out
        assert HTTP.get(f"{url}/rows/a").json()["drained"] == ["b"]
        assert main(["resume", "--json", *orders]) == 0
        assert json.loads(capsys.readouterr().out) == {"switches": {url: "nothing is frozen or drained"}}
        assert main(["drain-region", "mars", *orders]) == 1
        assert "mars is none of the fleet's regions" in capsys.readouterr().err
        token.write_text("another-token-of-16")
        assert main(["freeze", *orders]) == 1
        assert "the token is missing or another" in capsys.readouterr().err
        token.write_text("short")
        assert main(["freeze", *orders]) == 2
    finally:
        one.end()
    assert main(["freeze", "--control", url, "--token-file", str(tmp_path / "none")]) == 2
