"""Dashboards show something: each query is one that Prometheus takes, and a fleet that runs answers it."""

import asyncio
import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from jobs.metrics import Metrics
from laboratory.arrivals import poisson
from laboratory.local.client import send
from laboratory.local.launch import Options, running
from routing.cli import main
from routing.fleet import load_fleet

from .conftest import ROOT

FOLDER = ROOT / "deploy" / "grafana"
FLEET = ROOT / "docs" / "examples" / "small-fleet.yaml"


def boards():
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}


def queries(*names):
    """(dashboard, panel, query) of all panels, as Grafana would ask for all regions."""
    for name, board in boards().items():
        if names and name not in names:
            continue
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                text = target["expr"].replace("$region", ".+").replace("$__rate_interval", "20s")
                yield name, panel["title"], text


FLEETS = ("model", "gpu-servers", "admission", "routing")


def test_there_are_dashboards_for_model_gpu_servers_admission_routing_and_jobs():
    assert set(boards()) == {*FLEETS, "jobs"}
    for name, board in boards().items():
        assert board["uid"] == f"stillmotion-{name}"
        for panel in board["panels"]:
            if panel["type"] != "row":
                assert panel["description"], panel["title"]
                assert panel["targets"], panel["title"]


def test_dashboards_are_what_their_source_makes():
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        pytest.skip("no grafana-foundation-sdk here")
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.dashboards().items():
        assert (FOLDER / "dashboards" / f"{name}.json").read_text() == text, "run deploy/grafana/generate.py"


def test_each_query_is_one_that_prometheus_takes(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    rules = [{"record": f"panel:{i}", "expr": text} for i, (_, _, text) in enumerate(queries())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_job_service_has_what_its_dashboard_and_alerts_ask_for():
    page = Metrics().page({}, 0, 0).decode()
    rules = yaml.safe_load((FOLDER.parent / "prometheus" / "rules" / "alerts.yml").read_text())["groups"]
    (group,) = (group for group in rules if group["name"] == "stillmotion-videos")
    asked = [text for _, _, text in queries("jobs")] + [rule["expr"] for rule in group["rules"]]
    series = {name for text in asked for name in re.findall(r"stillmotion_\w+", text)}
    assert len(series) > 9
    for name in series:
        assert re.search(rf"^{name}[{{ ]", page, re.MULTILINE), name
    for label, value in re.findall(r'(reason|outcome|state|priority)="(\w+)"', " ".join(asked)):
        assert f'{label}="{value}"' in page


class Prometheus:
    """One that scrapes a fleet."""

    def __init__(self, url) -> None:
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def ask(self, query):
        answer = self.client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]["result"]

    def rules(self):
        groups = self.client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@pytest.mark.slow
def test_each_panel_is_answered_by_a_fleet_that_runs(tmp_path, capsys):
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    fleet = load_fleet(FLEET)
    # One region is asked for more than it has, so that there are refusals, retries and traffic between regions.
    rps = {name: load * fleet.capacity_rps(name) for name, load in zip(fleet.names, (1.3, 0.4, 0.4), strict=True)}
    with running(fleet, FLEET, tmp_path / "fleet", Options(prometheus="auto")) as started:
        outcomes = asyncio.run(send(poisson(rps, 45.0, random.Random(1)), started.edges))
        assert sum(one.ok for one in outcomes) > 0.9 * len(outcomes)
        prometheus = Prometheus(started.about.prometheus)
        assert all(one["value"][1] == "1" for one in prometheus.ask("up"))
        empty = {(board, title, text) for board, title, text in queries(*FLEETS) if not prometheus.ask(text)}
        end = time.monotonic() + 120
        while empty and time.monotonic() < end:  # rules follow by a round or two
            time.sleep(1)
            empty = {one for one in empty if not prometheus.ask(one[2])}
        assert not empty
        rules = prometheus.rules()
        assert len(rules) > 40
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
        firing = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"}
        assert not firing
        # A control loop that asks this Prometheus, as one in a cluster does, sees the fleet.
        source = ("--prometheus", started.about.prometheus)
        command = ["control", "--once", "--json", "--fleet", str(FLEET), "--out", str(tmp_path / "control"), *source]
        assert main(command) == 0
        regions = json.loads(capsys.readouterr().out)["regions"]
        assert {name: one["gpus_ready"] for name, one in regions.items()} == dict.fromkeys(fleet.names, 4)
        assert all(one["demand_now_rps"] is not None for one in regions.values())
        # What the rules say is what happened.
        (home,) = prometheus.ask('region:stillmotion_served_at_home:ratio_rate5m{region="us-west"}')
        assert float(home["value"][1]) > 0.9
        busy = {
            one["metric"]["region"]: float(one["value"][1])
            for one in prometheus.ask("region:stillmotion_busy:ratio_rate1m")
        }
        assert busy["us-east"] > busy["us-west"] > 0.2
        (attempts,) = prometheus.ask('region:stillmotion_job_attempts:ratio_rate5m{region="us-east"}')
        assert float(attempts["value"][1]) > 1
