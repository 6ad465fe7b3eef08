"""`fleet up`, `status` and `down`, from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from laboratory.local.launch import _check_starts
from laboratory.local.processes import down, marked
from laboratory.local.records import STATE, Running, read_state
from routing.cli import main
from routing.errors import RoutingError

from ...waiting import HTTP

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("programs")


class Commands:
    """Runs `python -m routing fleet` in a folder, with a fleet file there."""

    def __init__(self, folder, fleet_file, capsys):
        self.folder, self.file, self.capsys = folder, fleet_file, capsys
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(self, *arguments, **more):
        command = [sys.executable, "-m", "routing", "fleet", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def run(self, *arguments):
        """Exit status, output and error."""
        process = self.start(*arguments)
        try:
            output, error = process.communicate(timeout=600)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return process.returncode, output, error

    def ask(self, *arguments):
        """As `run`, without another Python: for what starts no process."""
        self.capsys.readouterr()
        try:
            status = main(["fleet", *arguments])
        except SystemExit as ended:
            status = ended.code
        said = self.capsys.readouterr()
        return status, said.out, said.err

    def up(self, *arguments):
        return self.run("up", "--fleet", str(self.file), "--prometheus", "no", *arguments)

    @property
    def home(self):
        return (self.folder / ".fleet" / self.file.stem).resolve()


@pytest.fixture
def commands(tmp_path, capsys, monkeypatch):
    """Two regions of two GPUs, and whatever was started ends with the test."""
    content = yaml.safe_load((ROOT / "docs" / "examples" / "small-fleet.yaml").read_text())
    content["regions"] = {"us-east": {"gpus": 2}, "us-west": {"gpus": 2}}
    content["latency_ms"] = {"us-east": {"us-west": 30}}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    found = Commands(tmp_path, file, capsys)
    yield found
    down(found.home)
    assert marked(found.home) == []


def form():
    return {"files": {"image": ("a.gif", b"GIF89a")}, "data": {"prompt": "x"}}


def test_a_fleet_comes_up_says_how_it_is_and_goes_down(commands):
    status, output, error = commands.up()
    assert status == 0, error
    assert "stand-ins for GPU servers" in output
    status, output, error = commands.run("status", "--json")
    assert status == 0, error
    found = json.loads(output)
    assert found["servers"] == "stand-in"
    assert found["phase"] == "running"
    assert set(found["regions"]) == {"us-east", "us-west"}
    east = found["regions"]["us-east"]
    assert east["gpus_ready"] == 2
    assert east["shares"]["us-east"] > 0.9
    assert len(found["parts"]) == 4 + 2 + 2 + 1
    assert {part["pid"] for part in found["parts"]} <= {one.pid for one in marked(commands.home)}
    ports = [int(url.rpartition(":")[2]) for url in (east["edge"], east["dispatcher"], *east["gpu_servers"].values())]
    assert max(ports) < 32_768

    response = HTTP.post(f"{east['edge']}/animate", **form(), timeout=120)
    assert response.status_code == 200
    assert response.headers["x-stillmotion-model"] == "stand-in"
    # The way between regions is as long as the fleet file says.
    dispatcher = found["regions"]["us-west"]["dispatcher"]
    headers = {"x-stillmotion-source": "us-east"}
    began = time.monotonic()
    assert HTTP.post(f"{dispatcher}/animate", **form(), headers=headers, timeout=120).is_success
    assert time.monotonic() - began >= 0.53

    status, output, error = commands.ask("status")
    assert status == 0, error
    assert "2 of 2 ready" in output
    assert "stand-in" in output
    assert east["edge"] in output

    status, output, error = commands.ask("up", "--fleet", str(commands.file), "--prometheus", "no")
    assert status == 1
    assert "a fleet runs there already" in error
    assert "fleet down" in error

    status, output, error = commands.run("down")
    assert status == 0, error
    assert "10 processes ended" in output
    assert marked(commands.home) == []
    status, output, error = commands.ask("status", "--fleet", str(commands.file))
    assert status == 1
    assert "no fleet runs there" in error
    assert commands.ask("down", "--fleet", str(commands.file))[1].endswith("nothing was running\n")


def test_what_a_killed_supervisor_leaves_is_told_and_cleaned_by_the_next_up(commands):
    assert commands.up()[0] == 0
    state = read_state(commands.home)
    os.kill(state.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while marked(commands.home) and sys.platform == "linux":
        assert time.monotonic() < end, "the kernel should have ended them"
        time.sleep(0.05)
    assert (commands.home / STATE).exists()
    status, _, error = commands.ask("status")
    assert status == 1
    assert "crashed" in error
    status, _, error = commands.up()
    assert status == 0, error


def test_nothing_is_left_when_up_is_killed_on_its_way(commands):
    process = commands.start("up", "--fleet", str(commands.file))
    end = time.monotonic() + 120
    while (state := read_state(commands.home)) is None or sum(one.pid is not None for one in state.components) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.communicate()
    while marked(commands.home) or (commands.home / STATE).exists():
        assert time.monotonic() < end, "the supervisor should have taken everything down"
        time.sleep(0.05)


def test_an_interrupted_up_takes_everything_down(commands):
    process = commands.start("up", "--fleet", str(commands.file))
    end = time.monotonic() + 120
    while read_state(commands.home) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.endswith("interrupted\n")
    assert marked(commands.home) == []


def test_a_part_that_does_not_start_is_named_with_its_last_words(commands):
    (commands.home / "logs").mkdir(parents=True)
    (commands.home / "logs" / "edge-a.log").write_text("first\nit does not like its configuration\n")
    with pytest.raises(RoutingError, match=r"edge-a ends with 1: .*does not like its configuration"):
        _check_starts(commands.home, (Running(name="edge-a", starts=4, exit_status=1),))
    # As Envoy says it when a user has no inotify instances left, above a stack of 30 lines.
    line = "[...][critical][assert] [watcher_impl.cc:25] assert failure: inotify_fd_ >= 0. Details: Consider increasing"
    (commands.home / "logs" / "edge-a.log").write_text("\n".join([line, *["[...] #1 UNKNOWN"] * 30]))
    with pytest.raises(RoutingError, match=r"edge-a ends with -6: inotify_fd_ >= 0. Details: Consider increasing"):
        _check_starts(commands.home, (Running(name="edge-a", starts=4, exit_status=-6),))


def test_wrong_use_is_told(commands):
    for arguments, text in (
        (("up",), "--fleet"),
        (("up", "--fleet", str(commands.file), "--service-time", "soon"), "--service-time"),
        (("up", "--fleet", str(commands.file), "--servers", "bentoml", "--service-time", "1"), "is for stand-ins"),
        (("up", "--fleet", str(commands.file), "--model", "a:b"), "is for --servers bentoml"),
        (("up", "--fleet", "nowhere.yaml"), "no such file"),
        (("status",), "which fleet?"),
        ((), "ACTION"),
    ):
        status, _, error = commands.ask(*arguments)
        assert status == 2, arguments
        assert text in error
    status, _, error = commands.ask("up", "--fleet", str(commands.file), "--port-base", "32760")
    assert status == 1
    assert "32767" in error


def test_a_process_that_has_the_id_of_one_of_the_fleet_is_left_alone(commands):
    """A state file of yesterday, whose numbers are other programs' today."""
    commands.home.mkdir(parents=True)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        one = {"name": "edge", "pid": bystander.pid, "starts": 1, "exit_status": None}
        state = {"pid": bystander.pid, "phase": "running", "components": [one]}
        (commands.home / STATE).write_text(json.dumps(state))
        assert down(commands.home) == 0
        assert not (commands.home / STATE).exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_fleet_of_another_service_takes_its_jobs_at_its_path(commands):
    content = yaml.safe_load(commands.file.read_text())
    content["jobs"] = {"paths": ["/v1/videos"], "pages": [], "ready": "/health", "body_limit": "1MiB"}
    commands.file.write_text(yaml.safe_dump(content))
    status, output, error = commands.up()
    assert status == 0, error
    url = next(line.split()[-1] for line in output.splitlines() if "us-east" in line)
    assert url.endswith("/v1/videos")
    assert HTTP.post(url, json={"prompt": "x"}, timeout=120).status_code == 200
    assert HTTP.post(url.replace("/v1/videos", "/animate"), **form(), timeout=120).status_code == 404
