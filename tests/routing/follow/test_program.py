"""The follower, a proxy and a control loop as programs, as pods have them, and what is left when they die."""

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

from routing.control.published import Published
from routing.envoy.binary import find_envoy
from routing.envoy.folders import edge_folder, ingress_folder, write_fleet
from routing.errors import RoutingError
from routing.fleet import Fleet
from routing.local.ports import reserve
from routing.schema import validated
from routing.table import RoutingTable

STARTED = "2025-01-31T12:00:00+00:00"


@pytest.fixture(scope="module", autouse=True)
def envoy():
    """The pinned Envoy; without it there is no proxy to follow for."""
    try:
        return find_envoy()
    except RoutingError as error:
        pytest.skip(str(error))


@pytest.fixture
def ports():
    """Twelve ports in a row that nobody else is given meanwhile."""
    reservation = reserve(12)
    yield list(range(reservation.first, reservation.first + 12))
    reservation.release()


class Pods:
    """One region as pods have it: GPU servers behind a name, an ingress, an edge, and a follower for each of both."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.gpu, self.ingress, self.edge, ingress_admin, edge_admin, self.control, *self.pages = ports
        places = {
            "a": {
                "edge": f"127.0.0.1:{self.edge}",
                "admin": f"127.0.0.1:{edge_admin}",
                "dispatchers": [
                    {"address": f"127.0.0.1:{self.ingress}", "admin": f"127.0.0.1:{ingress_admin}", "gpus": 1}
                ],
            },
            "b": {"edge": "127.0.0.1:9", "dispatchers": [{"address": "127.0.0.1:9", "gpus": 1}]},
        }
        self.admin = {"edge": f"127.0.0.1:{edge_admin}", "ingress": f"127.0.0.1:{ingress_admin}"}
        content = {
            "regions": {"a": {"gpus": 1}, "b": {"gpus": 1}},
            "latency_ms": {"a": {"b": 20}},
            "service_time_s": 0.2,
            "rings_ms": [50],
            "thresholds": [{"load": 0.75, "ring": 1}],
            "target_load": 0.75,
            "stale_after_s": 3,
            "retry": {"attempts": 8, "base_interval_s": 0.05, "max_interval_s": 0.2},
            "data_plane": {"places": places, "access_log": False},
        }
        self.fleet = validated(Fleet, content)
        (folder / "fleet.yaml").write_text(yaml.safe_dump(content))
        write_fleet(folder / "run", self.fleet, table(1))
        self.started: list[subprocess.Popen] = []

    def start(self, *arguments: object) -> subprocess.Popen:
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", *map(str, arguments)], stdout=log, stderr=log)
        self.started.append(process)
        return process

    def proxy(self, role: str) -> subprocess.Popen:
        return self.start("routing", "proxy", "--folder", self.of(role))

    def of(self, role: str) -> Path:
        return (edge_folder if role == "edge" else ingress_folder)(self.folder / "run", "a")

    def follow(self, role: str, *more: object) -> subprocess.Popen:
        common = ("--fleet", self.folder / "fleet.yaml", "--region", "a", "--folder", self.of(role))
        return self.start("routing", "follow", *common, "--interval", 0.2, *more)

    def job(self) -> httpx.Response:
        form = {"files": {"image": ("a.png", b"x")}, "data": {"prompt": "moves"}}
        return httpx.post(f"http://127.0.0.1:{self.edge}/animate", **form, timeout=120, trust_env=False)

    def version(self) -> str:
        """Of the table that the edge has, a digest."""
        return stat(self.admin["edge"], r"cluster\.jobs\.version_text")

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
    page = httpx.get(f"http://{admin}/stats", params={"filter": f"^{name}$"}, timeout=60, trust_env=False)
    return page.text.partition(":")[2].strip()


def table(version: int, home: float = 1.0) -> RoutingTable:
    away = {} if home == 1.0 else {"b": 1 - home}
    shares = {"a": {"a": home, **away}, "b": {"b": 1.0}}
    return RoutingTable.from_json(json.dumps({"version": version, "generated_at": STARTED, "shares": shares}))


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
        data = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def publishing(port: int, one: RoutingTable):
    server = ThreadingHTTPServer(("127.0.0.1", port), Publishes)
    server.text = json.dumps(Published(table=one, delay_share={"a": 0.0, "b": 0.0}).to_dict())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_pods_serve_on_with_the_last_table_when_the_control_loop_and_the_followers_die(pods):
    gpu = ("--region", "a", "--serve", f"a-1=127.0.0.1:{pods.gpu}", "--service-time", "0.05")
    pods.start("routing.local.standin", *gpu)
    followers = [pods.follow("ingress", "--servers", f"localhost:{pods.gpu}", "--listen", f"127.0.0.1:{pods.pages[0]}")]
    live = f"http://127.0.0.1:{pods.pages[0]}"
    pods.until(lambda: httpx.get(f"{live}/livez", trust_env=False).status_code == 200, "the follower lives")
    pods.proxy("ingress")
    with publishing(pods.control, table(7, 0.99)):
        followers.append(pods.follow("edge", "--control", f"http://127.0.0.1:{pods.control}"))
        edge = pods.proxy("edge")
        pods.until(lambda: pods.job().status_code == 200, "jobs are served")
        pods.until(lambda: '"zone": "b"' in config(pods) and "990000" in config(pods), "the table has come")
    before = pods.version()
    for follower in followers:
        follower.kill()
        follower.wait()
    assert [pods.job().status_code for _ in range(10)] == [200] * 10
    # The proxy alone starts again, as a container does: what is in its files is what it had.
    edge.kill()
    edge.wait()
    pods.proxy("edge")
    pods.until(lambda: pods.job().status_code == 200, "the edge is back")
    assert pods.version() == before
    # A follower that starts while there is no control loop leaves the table as it is.
    pods.follow("edge", "--control", f"http://127.0.0.1:{pods.control}")
    time.sleep(1.5)
    assert [pods.job().status_code for _ in range(5)] == [200] * 5
    assert pods.version() == before


def config(pods: Pods) -> str:
    page = httpx.get(
        f"http://{pods.admin['edge']}/config_dump", params={"include_eds": ""}, timeout=60, trust_env=False
    )
    return page.text


@pytest.mark.slow
def test_a_proxy_is_drained_before_it_stops(pods):
    gpu = ("--region", "a", "--serve", f"a-1=127.0.0.1:{pods.gpu}", "--service-time", "5")
    pods.start("routing.local.standin", *gpu)
    pods.follow("ingress", "--servers", f"localhost:{pods.gpu}")
    pods.proxy("ingress")
    pods.proxy("edge")
    url = f"http://127.0.0.1:{pods.edge}/readyz"
    pods.until(lambda: httpx.get(url, trust_env=False).status_code == 200, "the edge is ready")
    answers = []
    job = threading.Thread(target=lambda: answers.append(pods.job().status_code))
    job.start()
    pods.until(lambda: stat(pods.admin["ingress"], r"cluster\.jobs\.upstream_rq_active") == "1", "a job is under way")
    command = [sys.executable, "-m", "routing", "drain", "--admin", pods.admin["edge"], "--leave", "0.2"]
    hurried = subprocess.run([*command, "--limit", "0.1"], capture_output=True, text=True, check=False)
    assert hurried.returncode == 1
    assert "1 requests are still in flight after 0.3 s" in hurried.stderr
    assert not answers
    patient = subprocess.run([*command, "--limit", "120"], capture_output=True, text=True, check=False)
    assert patient.returncode == 0, patient.stderr
    job.join(120)
    assert answers == [200]
    assert httpx.get(url, trust_env=False).status_code == 503


def test_a_follower_ends_on_sigterm_and_says_how_it_stands(pods):
    with publishing(pods.control, table(7, 0.9)):
        follower = pods.follow(
            "edge", "--control", f"http://127.0.0.1:{pods.control}", "--listen", f"127.0.0.1:{pods.pages[0]}"
        )
        page = f"http://127.0.0.1:{pods.pages[0]}/metrics"
        pods.until(
            lambda: "stillmotion_follow_table_version 7.0" in httpx.get(page, trust_env=False).text, "the table came"
        )
    os.kill(follower.pid, signal.SIGTERM)
    assert follower.wait(120) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--region", "a"), "give --control, --servers or both"),
        (("--region", "mars", "--servers", "gpu:3000"), "--region: mars is none of the fleet's regions"),
        (("--region", "a", "--servers", "gpu"), "gpu is no name with a port, such as gpu:3000"),
        (
            ("--region", "a", "--control", "10.1.0.20:9900"),
            "10.1.0.20:9900 is no address such as http://10.1.0.20:9900",
        ),
        (("--region", "a", "--servers", "gpu:3000", "--interval", "0"), "--interval 0 is not between 0.1 and 60"),
        (("--region", "a", "--servers", "gpu:3000", "--folder", "/"), "--folder: / has no endpoints.yaml"),
    ],
)
def test_wrong_use_is_one_line(pods, capsys, arguments, text):
    from routing.cli import main

    folder = () if "--folder" in arguments else ("--folder", str(pods.of("edge")))
    command = ["follow", "--fleet", str(pods.folder / "fleet.yaml"), *folder, *arguments]
    try:
        status = main(command)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert text in capsys.readouterr().err


def test_once_is_one_look(pods, capsys):
    from routing.cli import main

    common = ["follow", "--json", "--once", "--fleet", str(pods.folder / "fleet.yaml"), "--region", "a"]
    assert main([*common, "--folder", str(pods.of("ingress")), "--servers", f"localhost:{pods.gpu}"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert f"127.0.0.1:{pods.gpu}" in document["servers"]
    assert document["problems"] == []


def test_the_control_loop_publishes_what_followers_read(tmp_path, ports):
    """The real page of the real program, though no machine answers it."""
    from routing.follow.tables import TableSource

    one = Pods(tmp_path, ports)
    content = yaml.safe_load((tmp_path / "fleet.yaml").read_text())
    pages = {name: {"gpu_servers": [f"http://127.0.0.1:9/{name}"], "edges": []} for name in "ab"}
    content["metrics"] = {"pages": pages, "time_limit_s": 0.2}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(content))
    out = ("--out", tmp_path / "control", "--listen", f"127.0.0.1:{one.control}", "--interval", 0.5)
    try:
        one.start("routing", "control", "--fleet", tmp_path / "fleet.yaml", *out)
        url = f"http://127.0.0.1:{one.control}"
        one.until(lambda: httpx.get(f"{url}/published.json", trust_env=False).status_code == 200, "it publishes")

        async def ask():
            source = TableSource(url, one.fleet, 60.0)
            try:
                return await source.ask()
            finally:
                await source.close()

        found = asyncio.run(ask())
        assert found.table.shares["a"]["a"] == pytest.approx(1.0, abs=0.05)
        assert set(found.delay_share) == {"a", "b"}
    finally:
        one.end()
