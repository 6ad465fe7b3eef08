"""Rules and scrape configuration of Prometheus."""

import json
import re
import shutil
import subprocess
import time

import httpx
import pytest
import yaml

from laboratory.local.layout import reserve
from routing.errors import InputError
from routing.kubernetes.monitors import monitors
from routing.metrics.prometheus import ENVOY_FILTER

from ..waiting import HTTP
from .conftest import ROOT
from .test_kubernetes import containers, of_kind, pods

FOLDER = ROOT / "deploy" / "prometheus"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
UNIT_TESTS = sorted((FOLDER / "tests").glob("*.yml"))


@pytest.fixture(scope="module")
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here: apt-get install prometheus")

    def run(*arguments):
        return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)

    return run


def alerts():
    groups = yaml.safe_load((FOLDER / "rules" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_rules_are_what_prometheus_takes(promtool):
    done = promtool("check", "rules", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_otherwise(promtool, path):
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    fires, stays = set(), set()
    for path in UNIT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for test in case.get("alert_rule_test", []):
                (fires if test["exp_alerts"] else stays).add(test["alertname"])
    assert fires == set(alerts())
    # Alerts on a level alone: that it is not there is what the other cases of a quiet fleet are.
    assert set(alerts()) - stays <= {
        "StillmotionComputationsFail",
        "StillmotionDeadlines",
        "StillmotionFarFromHome",
        "StillmotionGpuServerSlow",
    }


def test_each_alert_says_what_to_do_where_there_is_something_to_read():
    page = (ROOT / "docs" / "operate.md").read_text()
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)}
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"page", "ticket"}, name
        file, anchor = rule["annotations"]["runbook"].split("#")
        assert file == "docs/operate.md"
        assert anchor in anchors, name
        assert name in page, f"docs/operate.md does not name {name}"


def test_servers_are_scaled_by_the_jobs_that_their_dispatcher_has(promtool, overlays, tmp_path):
    scaled = {one["metadata"]["name"]: one for one in overlays["us-east"] if one["kind"] == "ScaledObject"}
    (trigger,) = scaled["gpu-2"]["spec"]["triggers"]
    query, threshold = trigger["metadata"]["query"], float(trigger["metadata"]["threshold"])
    jobs = {("us-east", "2", "gpus"): 1.5, ("us-east", "2", "pages"): 7, ("us-east", "1", "gpus"): 9}
    jobs |= {("eu-west", "2", "gpus"): 8}
    series = [
        {
            "series": "haproxy_backend_current_sessions"
            f'{{region="{region}", dispatcher="{dispatcher}", proxy="{proxy}"}}',
            "values": f"{count}x30",
        }
        for (region, dispatcher, proxy), count in jobs.items()
    ]
    expected = {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": 1.5}]}
    path = tmp_path / "scaling.yml"
    path.write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [expected]}]})
    )
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert threshold == 0.6  # so that 1.5 asks for three, of two


def test_proxies_are_asked_for_what_is_used():
    jobs = {one["job_name"]: one for one in configuration()["scrape_configs"]}
    assert jobs["stillmotion-edges"]["params"] == {"filter": [ENVOY_FILTER]}


def configuration():
    return yaml.safe_load((FOLDER / "prometheus.yml").read_text())


def discovered(region, resources):
    """What Prometheus' discovery finds of the pods of a region: a target for each port of each container."""
    for name, pod in pods(resources).items():
        labels = {
            f"__meta_kubernetes_pod_label_{re.sub(r'[^a-zA-Z0-9]', '_', key)}": value
            for key, value in pod["metadata"]["labels"].items()
        }
        for container in containers(pod):
            for port in container.get("ports", []):
                yield {
                    "targets": [f"127.0.0.1:{port['containerPort']}"],
                    "labels": {
                        **labels,
                        "__meta_kubernetes_pod_name": f"{region}-{name}",
                        "__meta_kubernetes_pod_container_name": container["name"],
                        "__meta_kubernetes_pod_container_port_name": port["name"],
                    },
                }


def test_the_prometheus_operator_is_given_the_same_targets_and_rules(operator, kustomize, check):
    operator.settings |= {"prometheus_operator": True, "rollouts": True}
    assert operator.render() == 0
    resources = kustomize(operator.out / "us-east")
    for one in resources:
        check(one)
    found = of_kind(resources, "PrometheusRule")
    groups = {path.stem: yaml.safe_load(path.read_text())["groups"] for path in RULES}
    assert {name: one["spec"]["groups"] for name, one in found.items()} == {
        f"stillmotion-{name}": content for name, content in groups.items()
    }
    found, named = of_kind(resources, "PodMonitor"), set()
    jobs = {one["job_name"]: one for one in configuration()["scrape_configs"]}
    assert found.keys() == jobs.keys()
    for name, one in found.items():
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            named.add(endpoint["port"])
            assert endpoint.get("path") == jobs[name].get("metrics_path")
            assert endpoint.get("params") == jobs[name].get("params")
            assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("5s", "4s")
            rules = [rule for rule in jobs[name]["relabel_configs"] if rule.get("action") != "keep"]
            assert [rule["targetLabel"] for rule in endpoint["relabelings"]] == [one["target_label"] for one in rules]
        labels = one["spec"]["selector"]["matchLabels"].items()
        assert all(labels <= pod["metadata"]["labels"].items() for pod in pods(resources).values())
    there = [port for pod in pods(resources).values() for one in containers(pod) for port in one.get("ports", [])]
    assert named - {"copies"} <= {port["name"] for port in there}


def test_a_scrape_job_that_no_pod_monitor_can_be_is_refused(tmp_path):
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration()).replace("http|pages|copies", ".*"))
    with pytest.raises(InputError, match="stillmotion: keeps other targets"):
        monitors(tmp_path)
    content = configuration()
    content["scrape_configs"][1]["honor_timestamps"] = False
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="stillmotion-edges: honor_timestamps has no place"):
        monitors(tmp_path)


@pytest.mark.slow
def test_each_pod_of_a_fleet_is_scraped_with_its_tier_and_region(overlays, tmp_path):
    """Debian's Prometheus has no discovery of Kubernetes, so that it is given what that would find."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    found = [one for region, resources in overlays.items() for one in discovered(region, resources)]
    content = configuration()
    content.pop("rule_files")
    for job in content["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["stillmotion"]}}]
        job["static_configs"] = found
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(content))
    reservation = reserve(1)
    at = f"127.0.0.1:{reservation.first}"
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={at}"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        targets = []
        while not targets:
            assert time.monotonic() < end, (tmp_path / "log.txt").read_text()
            time.sleep(0.2)
            try:
                targets = HTTP.get(f"http://{at}/api/v1/targets").json()["data"]["activeTargets"]
            except (httpx.HTTPError, json.JSONDecodeError):
                continue
    finally:
        process.terminate()
        process.wait(120)
        reservation.release()
    seen = {
        (
            one["labels"]["pod"],
            one["labels"]["tier"],
            one["labels"].get("region"),
            one["labels"].get("dispatcher"),
            one["scrapeUrl"].partition("?")[0].rpartition(":")[2],
        )
        for one in targets
    }
    expected = set()
    for region, resources in overlays.items():
        for name in pods(resources):
            kind, number = name.partition("-")[0], name.partition("-")[2] or "1"
            dispatcher = number if kind in {"gpu", "dispatcher"} else None
            place = None if kind == "control" else region
            port = {"gpu": "3000", "control": "9900", "dispatcher": "9902"}.get(kind, "9903")
            expected.add((f"{region}-{name}", kind, place, dispatcher, f"{port}/metrics"))
            if kind == "dispatcher":
                expected.add((f"{region}-{name}", kind, place, dispatcher, "9902/jobs"))
            if kind == "edge":
                expected.add((f"{region}-{name}", "agent", place, dispatcher, "9905/metrics"))
    assert seen == expected
    assert all(("filter=" in one["scrapeUrl"]) == (one["labels"]["tier"] == "edge") for one in targets)
