"""Fleets that load tests are tried on: in files, as counts, and real but for their GPU servers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from laboratory.arrivals import Outcome
from laboratory.local.launch import Options, running
from laboratory.local.processes import marked
from loadtests.deployment import Deployment
from loadtests.findings import Observed, Run
from loadtests.roles import resolve
from loadtests.tally import Tally
from loadtests.timed import Timed
from routing.errors import RoutingError
from routing.fleet import Fleet, load_fleet
from routing.proxies import Programs
from routing.schema import validated

from .. import ports

ROOT = Path(__file__).resolve().parents[2]
LOCUST = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py"), "--only-summary"]


@pytest.fixture(scope="session")
def small_fleet() -> Fleet:
    """Three regions of four GPUs; us-west is in ring 1 of us-east, eu-west in ring 2."""
    return load_fleet(ROOT / "docs" / "examples" / "small-fleet.yaml")


@pytest.fixture(scope="session")
def world() -> Fleet:
    """Five regions of many GPUs, with places on the globe."""
    return load_fleet(ROOT / "docs" / "examples" / "fleet.yaml")


FLEET = {
    "regions": {"a": {"gpus": 2}, "b": {"gpus": 2}},
    "latency_ms": {"a": {"b": 20}},
    "service_time_s": 0.2,
    "rings_ms": [30],
    "thresholds": [{"load": 0.75, "ring": 1}],
    "target_load": 0.75,
    "smoothing_s": 4.0,
    "retry": {"attempts": 60, "base_interval_s": 0.05, "max_interval_s": 0.4},
    "jobs": {"deadline_s": 10},
    "data_plane": {"limits": {"edge_threads": 1}, "access_log": False},
}


@pytest.fixture(scope="session")
def tiny_fleet() -> Fleet:
    """Two regions of two GPUs."""
    return validated(Fleet, FLEET)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, tiny_fleet):
    """Folder of two regions that run on this machine, with real proxies. No longer than for one module: proxies look
    at each other, and the control loop at all of them, each second.
    """
    try:
        Programs.find()
    except RoutingError as error:
        pytest.skip(str(error))
    home = tmp_path_factory.mktemp("tiny")
    file = home / "fleet.yaml"
    file.write_text(yaml.safe_dump(FLEET))
    folder = home / "up"
    with running(tiny_fleet, file, folder, Options(prometheus="no")):
        yield folder
    assert marked(folder.resolve()) == []


@pytest.fixture
def secured_folder(tmp_path):
    """(folder of a fleet whose edges have a certificate and want keys, the certificate)."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl, which makes certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=users", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *curve, *names, "-keyout", "users.key", "-out", "users.pem"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "keys.yaml").write_text("somebody: a-key-of-sixteen-letters\n")
    plane = FLEET["data_plane"] | {"tls": {"certificate": "users.pem", "key": "users.key"}, "api_keys": "keys.yaml"}
    content = FLEET | {"data_plane": plane}
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(content))
    with running(validated(Fleet, content), file, tmp_path / "up", Options(prometheus="no")):
        yield tmp_path / "up", tmp_path / "users.pem"


@pytest.fixture
def scenario_file(tmp_path):
    """Writes a scenario after a change of a small one, and gives its path."""

    def write(**changes) -> Path:
        content = {
            "name": "small",
            "duration_s": 20,
            "traffic": {"load": 0.4},
            "objectives": [{"kind": "failed", "at_most": 0.02}],
        }
        path = tmp_path / "scenario.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture
def locust(tmp_path):
    """Runs Locust, and gives (exit status, verdict or nothing, what it said)."""

    def run(*arguments, timeout=280):
        verdict = tmp_path / "verdict.json"
        verdict.unlink(missing_ok=True)
        done = subprocess.run(
            [*LOCUST, "--headless", "--verdict", str(verdict), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
        )
        content = json.loads(verdict.read_text()) if verdict.is_file() else {}
        return done.returncode, content, done.stderr

    return run


@pytest.fixture
def locust_command():
    """The program, for who runs it in another way."""
    return LOCUST


@pytest.fixture
def drill():
    """`python -m loadtests run` on the small fleet: (exit status, document, what it said)."""

    def run(*arguments):
        fleet = ROOT / "docs" / "examples" / "small-fleet.yaml"
        command = [sys.executable, "-m", "loadtests", "run", "--json", "--fleet", str(fleet), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800, cwd=ROOT)
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    return run


@pytest.fixture
def free_port():
    """At which nobody listens."""
    return ports.free_port()


@pytest.fixture
def free_edge():
    """URL at which nobody listens."""
    return f"http://127.0.0.1:{ports.free_port()}"


@pytest.fixture
def fake_edge():
    """URL of some other web server."""
    server = ThreadingHTTPServer(("127.0.0.1", ports.free_port()), _Other)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class _Other(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    do_POST = do_GET  # noqa: N815  # as the library has it

    def log_message(self, *_):
        pass


class Recorded:
    """Requests as they could have been, for what judges them."""

    def __init__(self, fleet, bin_s=1.0, duration_s=100.0, roles=None, **more) -> None:
        self.fleet, self.tally = fleet, Tally(bin_s, fleet.service_time_s)
        self.run = Run(self.tally, fleet, resolve(roles or {}, fleet), Timed(1.0), duration_s, **more)

    def add(self, count, source, served="", *, at_s=50.0, attempts=1, wait_s=0.0, status=200, late_s=0.0, problem=""):
        """So many requests of a kind, at once, or over a time when `at_s` is one."""
        begin, end = at_s if isinstance(at_s, tuple) else (at_s, at_s)
        for i in range(count):
            at = begin + (end - begin) * i / count
            self.tally.arrived(at, source)
            away_s = self.fleet.latency(source, served) / 1000 if served else 0.0
            latency_s = wait_s + away_s + self.fleet.service_time_s
            one = Outcome(source, at, late_s, latency_s, status, served, attempts, None, away_s, problem)
            self.tally.add(one, 0.1)
        return self


@pytest.fixture(scope="session")
def recorded():
    """See `Recorded`."""
    return Recorded


@pytest.fixture(scope="session")
def observed():
    return Observed


@pytest.fixture
def deployment(small_fleet):
    """Edges that nobody listens at."""
    return Deployment(small_fleet, {name: f"http://127.0.0.1:{i + 9}" for i, name in enumerate(small_fleet.names)})


@contextlib.contextmanager
def _environment(**values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def environment():
    """Variables for the length of a block."""
    return _environment
