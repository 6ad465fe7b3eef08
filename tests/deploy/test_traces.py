"""One request from the edge to the last denoising step: its trace, and its lines in the logs."""

import json
import os
import subprocess
import sys
import time

import pytest

from laboratory.local.launch import Options, running
from laboratory.local.layout import reserve
from routing.fleet import Fleet
from routing.schema import validated

from ..waiting import HTTP, until
from .collector import collecting
from .conftest import ROOT

STEPS = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a small model: random weights, eight steps."""
    home = tmp_path_factory.mktemp("bentoml")
    code = (
        "from tests.models import small_i2vgen; from pipeline.serve.store import describe, save_to_store;"
        f"pipe = small_i2vgen(steps={STEPS});"
        "save_to_store(pipe, describe(pipe, 'random weights', {}), '# Random weights\\n')"
    )
    environment = {**os.environ, "BENTOML_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True)
    return home


@pytest.fixture
def port():
    reservation = reserve(1)
    yield reservation.first
    reservation.release()


def fleet_of(**data_plane):
    content = {
        "regions": {"a": {"gpus": 1}, "b": {"gpus": 0}},
        "latency_ms": {"a": {"b": 20}},
        "service_time_s": 4.0,
        "rings_ms": [50],
        "thresholds": [{"load": 0.75, "ring": 1}],
        "target_load": 0.75,
        "retry": {"attempts": 10, "base_interval_s": 0.2, "max_interval_s": 1.0},
        "data_plane": data_plane,
    }
    return validated(Fleet, content)


def ask(url, **headers):
    picture = (ROOT / "assets" / "ball.png").read_bytes()
    form = {"files": {"image": ("ball.png", picture)}, "data": {"prompt": "a red circle moves right"}}
    answer = HTTP.post(f"{url}/animate", **form, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def lines(folder, name):
    """Lines of JSON in a log; others are none of ours."""
    found = []
    for line in (folder / "logs" / f"{name}.log").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_request_is_traced_from_the_edge_to_each_denoising_step(programs, store, port, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("BENTOML_HOME", str(store))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STILLMOTION_LOG", "json")
    with collecting(port) as collector:
        monkeypatch.setenv("STILLMOTION_TRACES", f"http://{collector.address}/v1/traces")
        fleet = fleet_of(tracing={"collector": collector.address, "share": 1.0})
        options = Options(servers="bentoml", prometheus="no")
        with running(fleet, tmp_path / "none.yaml", tmp_path / "fleet", options) as started:
            # A user of a region without GPUs, who would like to say what is traced.
            stranger = "00-11111111111111111111111111111111-2222222222222222-01"
            answer = ask(started.edges["b"], traceparent=stranger)
            name = answer.headers["x-request-id"]
            (server,) = until(lambda: [one for one in collector.of("stillmotion-gpu") if one.name == "POST /animate"])
            until(lambda: [one for one in collector.of("stillmotion-edge") if one.trace == server.trace])
            folder = started.folder
            until(lambda: any(one.get("request_id") == name for one in lines(folder, "edge-b")))
        # All of it is one trace, of our own making, and each part is within the one around it.
        spans = {one.id: one for one in collector.spans if one.trace == server.trace}
        assert server.trace != "1" * 32
        assert {one.service for one in spans.values()} == {"stillmotion-edge", "stillmotion-gpu"}
        for one in spans.values():
            if one.parent in spans and one.service == spans[one.parent].service == "stillmotion-gpu":
                assert spans[one.parent].began - 0.001 <= one.began <= one.ended <= spans[one.parent].ended + 0.001
        ours = [one for one in spans.values() if one.service == "stillmotion-gpu"]
        by_name = {one.name: one for one in ours}
        assert set(by_name) == {
            *("POST /animate", "receive", "validate", "queue", "compute"),
            *("decode picture", "encode image", "encode prompt", "step", "decode latents", "encode video"),
        }
        steps = [one for one in ours if one.name == "step"]
        assert sorted(one.about["step"] for one in steps) == list(range(1, STEPS + 1))
        assert {spans[one.parent].name for one in steps} == {"compute"}
        assert server.about["stillmotion.request_id"] == name
        assert server.about["stillmotion.outcome"] == "ok"
        assert server.about["stillmotion.region"] == "a"
        (whole,) = [one for one in spans.values() if one.parent not in spans]
        assert (whole.service, whole.name) == ("stillmotion-edge", "edge POST /animate")
        proxies = [one for one in spans.values() if one.service != "stillmotion-gpu"]
        assert {one.about["stillmotion.request_id"] for one in proxies} == {name}
        # No word of what the request was about.
        assert "red circle" not in str([one.about for one in spans.values()])
    # The same id finds the lines of the edge and of the server.
    (edge,) = [one for one in lines(folder, "edge-b") if one.get("request_id") == name]
    assert (edge["status"], edge["region"]) == (200, "a")
    server_lines = [one for one in lines(folder, "gpu-a-1") if one.get("request_id") == name]
    assert {one["logger"] for one in server_lines} >= {"bentoml.stillmotion", "bentoml.access"}
    (job,) = [one for one in server_lines if "outcome" in one]
    assert (job["outcome"], job["status"], job["path"], job["region"]) == ("ok", 200, "/animate", "a")
    assert job["duration_ms"] > 0
    assert any(one["message"].startswith("computing ended") for one in server_lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_traced_where_the_edge_does_not_say_so_and_a_collector_that_is_away_costs_nothing(
    programs,  # noqa: ARG001
    store,
    port,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("BENTOML_HOME", str(store))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STILLMOTION_TRACES", f"http://127.0.0.1:{port}/v1/traces")
    fleet = fleet_of(tracing={"collector": f"127.0.0.1:{port}", "share": 0.0})
    options = Options(servers="bentoml", prometheus="no", control=False)
    with running(fleet, tmp_path / "none.yaml", tmp_path / "fleet", options) as started:
        server = next(iter(started.about.regions["a"].gpu_servers.values()))
        sampled = "00-11111111111111111111111111111111-2222222222222222-01"
        ask(server, traceparent=sampled)  # traced, and there is nobody to send it to
        with collecting(port) as collector:
            ask(started.edges["a"], traceparent=sampled)
            time.sleep(8)  # Envoy sends every five seconds, the server too
            traces = {one.trace for one in collector.spans}
            assert traces <= {"1" * 32}  # what was traced before, if it was kept
            assert not collector.of("stillmotion-edge")
