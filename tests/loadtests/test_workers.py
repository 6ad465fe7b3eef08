"""Load tests whose edges are a small web server: what Locust is made to do, and what it is told."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from loadtests.cli import main
from loadtests.deployment import ask

FLEET = {
    "regions": {"a": {"gpus": 2}, "b": {"gpus": 2}},
    "latency_ms": {"a": {"b": 20}},
    "service_time_s": 0.2,
    "rings_ms": [30],
    "thresholds": [{"load": 0.75, "ring": 1}],
    "target_load": 0.75,
}


class _Edge(BaseHTTPRequestHandler):
    """Answers each request at once, as an edge whose GPU servers take no time."""

    def do_GET(self):
        self._answer(b"alive\n" if self.path == "/livez" else b"{}", 200 if self.path == "/livez" else 404)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"video", 200)

    def _answer(self, body, status):
        self.send_response(status)
        for name, value in (("region", "a"), ("attempts", "1"), ("compute-seconds", "0.2")):
            self.send_header(f"x-stillmotion-{name}", value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200


@pytest.fixture(scope="module")
def edge():
    server = _Server(("127.0.0.1", 0), _Edge)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fleet_file(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(FLEET))
    return path


@pytest.fixture
def locust_in(tmp_path, locust_command):
    """Runs Locust with these variables, and gives (exit status, verdict or nothing, what it said)."""

    def run(environment, *arguments):
        verdict = tmp_path / "verdict.json"
        before = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
        done = subprocess.run(
            [*locust_command, "--headless", "--verdict", str(verdict), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=tmp_path,
            env=before | environment,
        )
        return done.returncode, json.loads(verdict.read_text()) if verdict.is_file() else {}, done.stderr

    return run


@pytest.fixture
def arguments(edge, fleet_file, scenario_file):
    """Of Locust, for a run of two seconds. Whether it is on time is not asked: the machine may be busy."""
    scenario = scenario_file(duration_s=2, traffic={"load": 1.0}, generator={"late_share": 1.0, "cpu_percent": 100.0})
    edges = [f"--edge={name}={edge}" for name in FLEET["regions"]]
    return ["--fleet", fleet_file, *edges, "--scenario", scenario]


def test_all_workers_are_waited_for_however_late_they_report(locust_in, arguments):
    # Locust's own wait, of a second, is what a busy machine outruns; without it each run shows what comes of that.
    status, found, said = locust_in({"LOCUST_WAIT_FOR_WORKERS_REPORT_AFTER_RAMP_UP": "0"}, "--processes", 2, *arguments)
    assert (status, found.get("void")) == (0, []), said
    assert found["generator"]["workers"] == 2
    assert found["requests"] == found["generator"]["planned"] > 0


def test_a_worker_that_cannot_read_its_fleet_file_is_reported(
    locust_in, locust_command, arguments, free_port, tmp_path
):
    # Arguments are the master's; the worker looks for the file in its own folder, as on another machine.
    (tmp_path / "elsewhere").mkdir()
    here = ["--fleet", "fleet.yaml", *arguments[2:]]
    worker = subprocess.Popen(
        [*locust_command, "--worker", "--master-host", "127.0.0.1", "--master-port", str(free_port)],
        cwd=tmp_path / "elsewhere",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", free_port, "--expect-workers", 1]
        status, found, said = locust_in({}, *master, *here)
    finally:
        worker.kill()
        worker.wait()
    assert status == 3, said
    assert found["void"] == ["a worker cannot send: fleet.yaml: no such file"]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--tags", "foo"], "--tags foo: a load test has no tags"),
        # The workers that Locust makes end too: else there would be no end to the output that is waited for.
        (["--processes", "2", "--compress", "0"], "--compress: 0 is not from 0.01 to 1000"),
    ],
)
def test_what_would_leave_nobody_to_send_is_wrong_use(locust_in, arguments, wrong, text):
    status, found, said = locust_in({}, *arguments, *wrong)
    assert (status, found) == (2, {})
    assert text in said
    assert "Traceback" not in said


@pytest.fixture
def dripping():
    """`dripping(start)`: URL of who sends this, and then a byte now and then for ever."""
    servers = []

    def begin(start):
        listener = socket.create_server(("127.0.0.1", 0))
        servers.append(listener)
        threading.Thread(target=drip, args=(listener, start), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def drip(listener, start):
        with contextlib.suppress(OSError):
            one, _ = listener.accept()
            one.sendall(start)
            while True:
                one.sendall(b"x")
                time.sleep(0.05)

    yield begin
    for one in servers:
        one.close()


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", id="no status"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="body without a length"),
    ],
)
def test_an_edge_that_sends_a_byte_now_and_then_is_given_up(dripping, start):
    assert ask(dripping(start), limit_s=0.3) == (0, "no whole answer within 0.3 s")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (["--compress", "0"], "--compress: 0 is not from 0.01 to 1000"),
        (["--compress", "-1"], "--compress: -1 is not from 0.01 to 1000"),
        (["--compress", "nan"], "--compress: nan is not from 0.01 to 1000"),
        (["--compress", "inf"], "--compress: inf is not from 0.01 to 1000"),
        (["--compress", "1e9"], "--compress: 1e+09 is not from 0.01 to 1000"),
        (["--processes", "0"], "--processes: 0 is not from 1 to 64"),
        (["--processes", "1000"], "--processes: 1000 is not from 1 to 64"),
        (["--seed", "-1"], "--seed: -1 is below 0"),
        (["--region", "c"], "--region: c is none of the fleet's; known are a, b"),
        (["--image", "no.png"], "no.png: cannot be read: No such file"),
        (["--prompt", " "], "--prompt: is empty"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_a_fleet_starts(fleet_file, tmp_path, capsys, wrong, text):
    out = tmp_path / "out"
    assert main(["run", "--fleet", str(fleet_file), "--out", str(out), "--scenarios", "steady", *wrong]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"traffic": {"load": 1e9}}, "traffic.load: makes up to 4e+11 requests, and a load test sends 5,000,000"),
        ({"traffic": {"load": 0.5, "changes": [{"at_s": 1, "factor": 1e9}]}}, "traffic.load: makes up to 1.9e+11"),
        (
            {"traffic": {"herds": [{"at_s": 1, "region": "a", "jobs_per_gpu": 1000}] * 3000}},
            "traffic.herds.2500.jobs_per_gpu: makes up to 5e+06 requests",
        ),
        ({"duration_s": 1e9}, "duration_s: the run would take 1e+09 s, and 604800 s is the most"),
    ],
)
def test_a_scenario_of_more_than_can_be_sent_is_refused(fleet_file, scenario_file, tmp_path, capsys, changes, text):
    scenario = scenario_file(**changes)
    arguments = ["--fleet", str(fleet_file), "--out", str(tmp_path / "out"), "--scenarios", str(scenario)]
    assert main(["run", *arguments]) == 2
    assert text in capsys.readouterr().err
