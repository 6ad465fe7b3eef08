"""The program itself, on machines that are fakes: signals, locks, restarts, faults of metrics."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml

from routing.cli import main
from routing.table import RoutingTable

SERVICE_S = 0.25


class FakeFleet:
    """Two regions of two GPU servers behind a dispatcher; counters go on with the time and with the demand."""

    def __init__(self, start_server, folder):
        self.demand = {"a": 3.0, "b": 2.0}
        self.jobs = {"a": 0.0, "b": 0.0}
        self.at = time.monotonic()
        self.faults, self.lock = {}, threading.Lock()
        self.servers, pages = {}, {}
        for region in "ab":
            for name in (f"{region}-dispatcher", f"{region}-edge"):
                self.servers[name] = start_server(lambda _, name=name: self.answer(name))
            pages[region] = {
                "dispatchers": [self.servers[f"{region}-dispatcher"].url],
                "edges": [self.servers[f"{region}-edge"].url],
            }
        self.file = folder / "fleet.yaml"
        content = {
            "regions": {"a": {"gpus": 2}, "b": {"gpus": 2}},
            "latency_ms": {"a": {"b": 20}},
            "service_time_s": SERVICE_S,
            "rings_ms": [50],
            "thresholds": [{"load": 0.75, "ring": 1}],
            "target_load": 0.75,
            "smoothing_s": 1.0,
            "stale_after_s": 2.5,
            "metrics": {"time_limit_s": 0.45, "pages": pages},
        }
        self.file.write_text(yaml.safe_dump(content))

    def answer(self, name):
        with self.lock:  # each server has threads of its own
            now = time.monotonic()
            for region, rps in self.demand.items():
                self.jobs[region] += rps * (now - self.at)
            self.at = now
        fault = self.faults.get(name)
        if isinstance(fault, (str, tuple)):
            return fault
        text = self.edge(name[0], now) if name.endswith("edge") else self.dispatcher(name[0], now)
        return 200, fault(text) if fault else text

    def dispatcher(self, region, now):
        busy = self.demand[region] * SERVICE_S
        return (
            'haproxy_backend_active_servers{proxy="gpus"} 2\nhaproxy_backend_current_queue{proxy="gpus"} 0\n'
            f'haproxy_backend_current_sessions{{proxy="gpus"}} {busy}\n'
            f'haproxy_backend_http_responses_total{{proxy="gpus",code="2xx"}} {self.jobs[region]}\n'
            f"haproxy_process_uptime_seconds {int(now)}\n"
        )

    def edge(self, region, now):
        return (
            f'envoy_cluster_upstream_rq_completed{{envoy_cluster_name="jobs"}} {self.jobs[region]}\n'
            f'envoy_http_downstream_rq_active{{envoy_http_conn_manager_prefix="edge"}} 0\n'
            f'envoy_cluster_zone_upstream_rq_xx{{envoy_cluster_name="jobs",envoy_response_code_class="2",'
            f'source_region="{region}",destination_region="{region}"}} {self.jobs[region]}\n'
            f"envoy_server_uptime{{}} {int(now)}\n"
        )


@pytest.fixture
def fleet(fake_server, tmp_path):
    return FakeFleet(fake_server, tmp_path)


class Program:
    """`python -m routing control` as a process."""

    def __init__(self, fleet, out, port, *more):
        command = [sys.executable, "-m", "routing", "control", "--fleet", str(fleet.file), "--out", str(out)]
        self.log = out.parent / f"log-{port}-{time.monotonic_ns()}.txt"
        self.url = f"http://127.0.0.1:{port}"
        # One for all that is asked: a new one reads all certificates of the machine.
        self.pages = httpx.Client(base_url=self.url, timeout=20.0, trust_env=False)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--interval", "0.5", "--listen", f"127.0.0.1:{port}", *more],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def status(self):
        try:
            return self.pages.get("/status.json").json()
        except httpx.TransportError:
            return None

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out


@pytest.fixture
def start(fleet, tmp_path, free_port):
    """Starts the program; it ends with the test."""
    started = []

    def begin(*more, port=free_port):
        started.append(Program(fleet, tmp_path / "out", port, *more))
        return started[-1]

    yield begin
    for program in started:
        program.pages.close()
        if program.process.poll() is None:
            program.process.kill()
            program.process.communicate(timeout=60)


def share(program):
    status = program.status()
    return status["shares"]["a"]["a"] if status else 1.0


# So long that each condition may be waited for as long as `eventually` does.
@pytest.mark.timeout(900)
def test_a_loop_follows_demand_survives_a_kill_and_ends_in_good_order(fleet, start, tmp_path, eventually):
    program = start()
    table = tmp_path / "out" / "table.json"
    assert eventually(table.exists)
    eventually(lambda: (status := program.status()) and status["rounds"] > 3)
    eventually(lambda: program.pages.get("/readyz").status_code == 200)
    fleet.demand["a"] = 7.5  # to 94 % of two GPUs
    eventually(lambda: share(program) < 0.85)
    eventually(lambda: program.status()["regions"]["a"]["demand_rps"] == pytest.approx(7.5, rel=0.1))
    eventually(lambda: program.status()["regions"]["a"]["gpus_ready"] == 2)
    eventually(lambda: program.status()["rps"]["b"]["b"] == pytest.approx(2.0, rel=0.5))
    assert "Traffic between regions" in program.pages.get("/").text
    assert "stillmotion_routing_share" in program.pages.get("/metrics").text
    program.end(signal.SIGKILL)
    before = RoutingTable.read(table)

    again = start()
    eventually(lambda: (status := again.status()) and status["rounds"] > 1)
    assert again.status()["version"] >= before.version
    assert share(again) < 0.9  # it went on from the table, and did not bring all traffic home
    fleet.demand["a"] = 3.0
    eventually(lambda: share(again) > 0.99)
    code, out = again.end()
    assert (code, out.splitlines()[-2].split(":")[0]) == (0, "a")
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / "decisions.jsonl").read_text().splitlines()]
    assert events.count("started") == 2
    assert events[-1] == "stopped"
    assert "Traceback" not in program.log.read_text() + again.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_of_metrics_neither_move_the_table_nor_end_the_loop(fleet, start, tmp_path, eventually):
    fleet.demand["a"] = 7.5
    program = start("--json")
    eventually(program.status)

    def settled():
        status = program.status()
        return not status["frozen"] and status["tables"] and abs(status["shares"]["a"]["a"] - 0.8) < 0.1

    def published():
        return RoutingTable.read(tmp_path / "out" / "table.json").shares

    def kinds():
        return {one["kind"] for one in program.status()["problems"]}

    absurd = {"a-dispatcher": lambda text: text.replace('servers{proxy="gpus"} ', 'servers{proxy="gpus"} 9')}
    absurd["a-edge"] = lambda text: text.replace('"jobs"} ', '"jobs"} -')
    absurd["b-edge"] = lambda text: text.replace('"jobs"} ', '"jobs"} 99999999')
    for faults, expected in (
        (absurd, {"negative", "above_limit", "too_many"}),
        (dict.fromkeys(fleet.servers, "hang"), {"late"}),
        ({"a-edge": (500, ""), "b-edge": "close"}, {"failed"}),
    ):
        eventually(settled)
        fleet.faults = faults
        eventually(lambda expected=expected: expected <= kinds())
        eventually(lambda: program.status()["frozen"])
        known, rounds = published(), program.status()["rounds"]
        assert known["a"]["a"] == pytest.approx(0.8, abs=0.15)  # what was absurd has moved nothing
        eventually(lambda rounds=rounds: program.status()["rounds"] > rounds + 2)
        assert published() == known
        assert program.pages.get("/readyz").status_code == 503
        eventually(lambda: program.pages.get("/livez").status_code == 200)
        fleet.faults = {}
    eventually(settled)
    eventually(lambda: not program.status()["problems"])
    assert program.status()["failed_rounds"] == 0
    fleet.demand["a"] = 3.0  # for which there is room in the other region
    fleet.faults["a-dispatcher"] = lambda text: text.replace('servers{proxy="gpus"} 2', 'servers{proxy="gpus"} 0')
    eventually(lambda: program.status()["regions"]["a"]["gpus_ready"] == 0)
    eventually(lambda: share(program) < 0.1)  # the GPUs at home are dead
    code, out = program.end()
    assert code == 0
    assert json.loads(out)["regions"]["a"]["capacity_rps"] == 0.0


def test_a_second_loop_is_refused_or_waits_and_takes_over_after_a_crash(
    start, control, capsys, tmp_path, another_free_port, eventually
):
    first = start()
    eventually(first.status)
    assert control("--interval", "0.5", "--listen", f"127.0.0.1:{another_free_port}") == 1
    text = capsys.readouterr().err
    assert text.startswith(f"error: {tmp_path / 'out'}: process {first.process.pid} publishes there already; stop it")
    assert text.count("\n") == 1
    standby = start("--standby", port=another_free_port)
    eventually(lambda: f"standby: process {first.process.pid} publishes" in standby.log.read_text())
    assert standby.status() is None
    first.end(signal.SIGKILL)
    assert eventually(standby.status)["version"] >= 1
    assert standby.end()[0] == 0


def test_a_port_that_is_taken_is_one_line_and_the_lock_is_given_back(control, capsys, fake_server):
    address = fake_server((200, "")).address
    for _ in range(2):  # the second time it would be the lock that is named
        assert control("--interval", "0.5", "--listen", address) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: cannot listen on {address}")


@pytest.fixture
def control(fleet, tmp_path):
    return lambda *more: main(["control", "--fleet", str(fleet.file), "--out", str(tmp_path / "out"), *more])


def test_once_looks_twice_publishes_and_ends(fleet, control, tmp_path, capsys):
    fleet.demand["a"] = 10.0
    for _ in range(5):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert control("--once", "--interval", "0.5", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["rounds"] == 2
        if not found["problems"]:  # else a busy machine was late with its metrics, and nothing could be decided
            break
    assert found["shares"]["a"]["a"] == pytest.approx(0.8, abs=0.011)  # one largest step
    assert RoutingTable.read(tmp_path / "out" / "table.json").version == 2


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--interval", "0.1"], 2, "--interval 0.1 is not between metrics.time_limit_s (0.45) and stale_after_s (2.5)"),
        (["--interval", "60"], 2, "--interval 60 is not between"),
        (["--interval", "nan"], 2, "--interval nan is not between"),
        (["--prometheus", "localhost:9090", "--interval", "0.5"], 2, "--prometheus: localhost:9090 is no address"),
        (["--token-file", "/none", "--interval", "0.5"], 2, "/none: "),
        (["--listen", "nowhere", "--interval", "0.5"], 2, "--listen: nowhere is no host and port"),
        (["--out", "/proc/none", "--interval", "0.5"], 1, "/proc/none: cannot be made"),
        (["--envoy", "/none", "--interval", "0.5"], 2, "--envoy: /none has no edge of a; write its files with"),
    ],
)
def test_wrong_use_is_named(control, capsys, more, code, text):
    try:
        status = control(*more)
    except SystemExit as error:
        status = error.code
    assert status == code
    assert text in capsys.readouterr().err


def test_the_loop_asks_nothing_of_the_home_folder_or_the_network(control, monkeypatch, capsys):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert control("--once", "--interval", "0.5") == 0
    assert "frozen" not in capsys.readouterr().out
