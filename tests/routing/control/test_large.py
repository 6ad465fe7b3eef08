"""One loop for a hundred regions, 300 edges and 50,000 GPUs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

REGIONS, EDGES = 100, 300
SYNTHETIC = Path(__file__).with_name("synthetic.py")


def fleet(port):
    """A hundred regions around the globe, which ask for up to 115 % of their capacity."""
    names = [f"r{i}" for i in range(REGIONS)]
    url = f"http://127.0.0.1:{port}"
    return {
        "regions": {
            name: {"gpus": 500, "latitude": -40.0 + 9 * (i % 10), "longitude": -180.0 + 3.6 * i}
            for i, name in enumerate(names)
        },
        "service_time_s": 2.5,
        "rings_ms": [60, 120, 400],
        "thresholds": [{"load": 0.75, "ring": 1}, {"load": 0.85, "ring": 2}, {"load": 0.95, "ring": 3}],
        "target_load": 0.75,
        "smoothing_s": 4,
        "metrics": {
            "time_limit_s": 0.9,
            "pages": {
                name: {
                    "dispatchers": [f"{url}/dispatcher/{i}"],
                    "edges": [f"{url}/edge/{i}/{k}" for k in range(EDGES // REGIONS)],
                }
                for i, name in enumerate(names)
            },
        },
    }


@pytest.fixture
def start():
    """Starts programs; they end with the test."""
    started = []

    def begin(*command):
        started.append(subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.timeout(300)
def test_a_round_takes_less_than_a_second_of_one_core_and_no_poll_is_refused(
    start, tmp_path, free_port, another_free_port, eventually
):
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet(free_port)))
    url = f"http://127.0.0.1:{another_free_port}"
    start(SYNTHETIC, "pages", free_port, REGIONS, EDGES)
    command = ("-m", "routing", "control", "--fleet", tmp_path / "fleet.yaml", "--out", tmp_path / "out")
    loop = start(*command, "--interval", 1, "--listen", f"127.0.0.1:{another_free_port}")
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as pages:

        def ready():
            try:
                return pages.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        def status():
            return pages.get("/status.json").json()

        eventually(ready)
        before, process = status(), psutil.Process(loop.pid)
        spent = sum(process.cpu_times()[:2])
        agents = start(SYNTHETIC, "agents", url, REGIONS, EDGES, 6)
        time.sleep(3)
        assert pages.get("/livez").status_code == 200  # with all 300 connected
        out, _ = agents.communicate(timeout=120)
        spent, after = sum(process.cpu_times()[:2]) - spent, status()
    found = json.loads(out)
    assert set(found["answers"]) <= {"200", "304"}
    assert found["answers"]["200"] >= EDGES
    assert found["backwards"] == 0
    assert after["tables"] > before["tables"]  # it has decided something meanwhile
    assert sum(region["gpus_ready"] for region in after["regions"].values()) == 50_000
    rounds = after["rounds"] - before["rounds"]
    sys.stdout.write(f"{spent / rounds:.2f} s of processor time a round, polls and pages included; {found}\n")
    assert spent / rounds <= 1.0
