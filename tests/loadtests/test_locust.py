"""Locust itself, against real Envoys and stand-ins for GPU servers."""

import csv
import json
import os
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from laboratory.local.processes import runs
from loadtests.plant import FAULTS

from ..waiting import HTTP

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "docs" / "examples" / "small-fleet.yaml"
QUICK = {
    "duration_s": 8,
    "traffic": {"load": 0.5, "herds": [{"at_s": 2, "region": "a", "jobs_per_gpu": 3}]},
    "objectives": [
        {"kind": "failed", "at_most": 0.02},
        {"kind": "at_home", "at_least": 0.5},
        {"kind": "tables", "at_least": 0},
    ],
}


def test_a_run_sends_what_was_planned_when_it_was_planned(locust, tiny_folder, scenario_file, tmp_path):
    arrivals, report = tmp_path / "arrivals.csv", tmp_path / "report.html"
    scenario = scenario_file(**QUICK)
    status, found, said = locust(
        "--fleet-folder", tiny_folder, "--scenario", scenario, "--arrivals", arrivals, "--report", report
    )
    if status == 3 and all("late" in reason for reason in found["void"]):
        pytest.skip(f"this machine is too busy to send on time: {found['void']}")
    assert status == 0, (found.get("void"), found.get("objectives"), said)
    assert found["verdict"] == "passed"
    with arrivals.open() as file:
        planned = list(csv.DictReader(file))
    assert found["requests"] == found["generator"]["arrivals"] == len(planned) > 60
    by_region = {name: sum(row["region"] == name for row in planned) for name in ("a", "b")}
    assert {name: one["requests"] for name, one in found["regions"].items()} == by_region
    assert found["failures"] == 0
    # A herd of six on two GPUs: four wait, and latency counts from the moment at which all six were due.
    assert found["attempts"]["most"] > 1
    assert found["wait_s"]["p99"] > 0.15
    assert found["control"]["silent_share"] < 0.5
    assert "verdict: passed" in said
    assert "small" in report.read_text()


def test_something_else_that_listens_is_no_edge(locust, fake_edge, tiny_fleet, scenario_file, tmp_path):  # noqa: ARG001
    edges = [f"--edge={name}={fake_edge}" for name in ("us-east", "us-west", "eu-west")]
    status, found, said = locust("--fleet", SMALL, *edges, "--scenario", scenario_file())
    assert status == 3, said
    assert found["verdict"] == "void"
    assert "is no edge of stillmotion" in found["void"][0]
    assert found["requests"] == 0


def test_wrong_use_ends_before_anything_is_sent(locust):
    status, found, said = locust("--fleet", SMALL)
    assert (status, found) == (2, {})
    assert "error: " in said
    assert "no edge is known of us-east" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_several_workers_send_the_same_arrivals_as_one(locust, tiny_folder, scenario_file):
    scenario = scenario_file(**QUICK)
    one = locust("--fleet-folder", tiny_folder, "--scenario", scenario)[1]
    status, two, said = locust("--fleet-folder", tiny_folder, "--scenario", scenario, "--processes", "2")
    assert status in {0, 3}, said
    assert two["generator"]["workers"] == 2
    assert two["requests"] == one["requests"]
    assert [(row["at_s"], row["source"], row["due"]) for row in two["series"]] == [
        (row["at_s"], row["source"], row["due"]) for row in one["series"]
    ]


@pytest.mark.slow
def test_an_objective_that_is_missed_is_exit_status_one(locust, tiny_folder, scenario_file):
    missed = {**QUICK, "objectives": [{"kind": "wait", "quantile": 0.95, "at_most_jobs": 0.001}]}
    missed["traffic"] = {"load": 1.1}
    status, found, said = locust("--fleet-folder", tiny_folder, "--scenario", scenario_file(**missed))
    assert status == 1, (found, said)
    assert found["objectives"][0]["verdict"] == "failed"


@pytest.mark.slow
def test_a_run_that_is_stopped_early_is_void(locust, tiny_folder, scenario_file):
    status, found, said = locust("--fleet-folder", tiny_folder, "--scenario", scenario_file(**QUICK), "-t", "4s")
    assert status == 3, said
    assert "arrivals came to be: the run was cut short" in found["void"][0]


@pytest.mark.slow
def test_an_edge_that_dies_makes_a_run_void(locust, tiny_folder, scenario_file, free_edge):
    about = json.loads((tiny_folder / "about.json").read_text())
    fleet = tiny_folder.parent / "fleet.yaml"
    edges = [f"--edge=a={about['regions']['a']['edge']}", f"--edge=b={free_edge}"]
    status, found, said = locust("--fleet", fleet, *edges, "--scenario", scenario_file(**QUICK))
    assert status == 3, said
    assert f"the edge of b at {free_edge} cannot be reached" in found["void"][0]


@pytest.mark.slow
def test_the_web_page_starts_runs_and_shows_their_verdicts(tiny_folder, scenario_file, locust_command, free_port):
    scenario = scenario_file(**QUICK)
    command = [*locust_command, "--web-host", "127.0.0.1", "--web-port", str(free_port)]
    process = subprocess.Popen(
        [*command, "--fleet-folder", str(tiny_folder), "--scenario", str(scenario)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60, trust_env=False) as page:
            _until(lambda: page.get("/").status_code == 200)
            assert page.get("/verdict").status_code == 404
            for seed in ("3", "4"):  # a second run begins with nothing of the first
                started = page.post(
                    "/swarm", data={"user_count": "1", "spawn_rate": "1", "seed": seed, "compress": "1"}
                )
                assert started.json()["success"]
                found = _until(lambda seed=seed: _verdict(page, int(seed)))
                assert found["requests"] == found["generator"]["planned"]
            assert "Load test: small" in page.get("/verdict").text
            rows = {row["name"]: row for row in page.get("/stats/requests").json()["stats"]}
            assert rows["a"]["num_requests"] == found["regions"]["a"]["requests"]
    finally:
        process.terminate()
        process.wait(120)


def _verdict(page, seed):
    answer = page.get("/verdict.json")
    content = answer.json() if answer.status_code == 200 else {}
    return content if content.get("seed") == seed else None


def _until(check, seconds=120.0):
    end = time.monotonic() + seconds
    while True:
        try:
            if found := check():
                return found
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.2)


CAUGHT_BY = {
    "no-backoff": "herd",
    "threshold-off-by-one": "thresholds",
    "edge-ignores-table": "hot-spot",
    "dead-control-loop": "hot-spot",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path, drill):
    status, found, said = drill("--scenarios", CAUGHT_BY[fault], "--plant", fault, "--out", tmp_path / "out")
    assert status == 1, said
    assert found["planted"] == fault
    scenario = found["scenarios"][CAUGHT_BY[fault]]
    assert any(one["verdict"] == "failed" for one in scenario["objectives"])
    assert not runs(tmp_path / "out" / CAUGHT_BY[fault] / "fleet")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_good_fleet_passes_all_of_them(tmp_path, drill):
    status, found, said = drill("--scenarios", *dict.fromkeys(CAUGHT_BY.values()), "--out", tmp_path / "out")
    assert status == 0, said
    for name in found["scenarios"]:
        folder = tmp_path / "out" / name
        assert {path.name for path in folder.iterdir()} == {"locust.html", "locust.log", "report.html", "verdict.json"}
    assert json.loads((tmp_path / "out" / "drill.json").read_text()) == found


@pytest.mark.slow
def test_a_region_that_is_lost_and_one_that_is_slow_are_well_again(locust, tiny_folder, scenario_file):
    failing = {
        "duration_s": 14,
        "traffic": {"load": 0.35},
        "failures": [
            {"at_s": 3, "until_s": 6, "region": "a"},
            {"at_s": 7, "until_s": 10, "region": "b", "slowness": 3},
        ],
        "objectives": [{"kind": "failed", "at_most": 0.2}],
    }
    status, found, said = locust("--fleet-folder", tiny_folder, "--scenario", scenario_file(**failing))
    assert status in {0, 3}, said
    assert "a is lost for 3 s" in said
    assert "b is well" in said
    lost = [row for row in found["series"] if row["source"] == "a" and 4 <= row["at_s"] < 6]
    assert sum(row["served"].get("a", 0) for row in lost) <= 1
    assert sum(row["served"].get("b", 0) for row in lost) > 0
    about = json.loads((tiny_folder / "about.json").read_text())
    for region in about["regions"].values():
        for url in region["gpu_servers"].values():
            assert HTTP.get(f"{url}/standin").json()["faults"]["slowness"] == 1.0


@pytest.mark.slow
def test_edges_with_certificates_and_keys_are_reached_as_users_reach_them(
    locust, scenario_file, secured_folder, environment, monkeypatch
):
    folder, certificate = secured_folder
    scenario = scenario_file(duration_s=6, traffic={"load": 0.5}, objectives=QUICK["objectives"][:1])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    status, found, said = locust("--fleet-folder", folder, "--scenario", scenario)
    assert status == 3, said
    assert "wants an API key" in found["void"][0]
    with environment(STILLMOTION_API_KEY="a-key-of-sixteen-letters"):
        status, found, said = locust("--fleet-folder", folder, "--scenario", scenario)
        assert status == 0, (found, said)
        assert found["edges"]["a"].startswith("https://")
        assert "a-key-of-sixteen-letters" not in json.dumps(found) + said
        monkeypatch.delenv("SSL_CERT_FILE")
        status, found, said = locust("--fleet-folder", folder, "--scenario", scenario)
        assert status == 3, said
        assert "cannot be reached" in found["void"][0]
