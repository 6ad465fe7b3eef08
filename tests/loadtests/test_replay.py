"""Recorded logs, thresholds of k6, and failures by Chaos Mesh: what others have, as this takes it."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from laboratory.simulate.scenario import Failure
from loadtests.chaos import LONGEST_DELAY_S
from loadtests.cli import main
from loadtests.faults import Hook
from loadtests.form import make_form
from loadtests.options import see_that_it_fits
from loadtests.replay import Replay, arrivals
from loadtests.scenario import load_scenario
from loadtests.timed import Timed
from routing.errors import InputError, RoutingError

LINE = {
    "address": "127.0.0.1", "attempts": 1, "bytes_in": 20_000, "bytes_out": 218, "client": None, "duration_ms": 59,
    "edge": "us-east", "flags": "-", "method": "POST", "path": "/animate", "region": "us-west",
    "request_id": "7fb60a79-128d-4617-9883-caa8bb84feea", "status": 200, "time": "2026-11-30T20:43:23.000Z",
    "why": "via_upstream",
}  # fmt: skip


def line(second, edge="us-east", **more):
    return json.dumps({**LINE, "edge": edge, "time": f"2026-11-30T20:43:{second:06.3f}Z", **more})


@pytest.fixture
def log(tmp_path):
    """Writes lines, and gives the file's path."""

    def write(*lines, name="access.log"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def read(fleet, *logs, speed=1.0, seconds=60.0):
    return arrivals(Replay(logs=tuple(map(str, logs)), speed=speed), fleet, seconds, Timed(1.0))


def test_jobs_of_a_log_come_at_their_times_or_twice_as_fast_from_their_regions_and_in_their_size(log, small_fleet):
    path = log(
        "[2026-11-30 20:43:22.000][1][info][main] Envoy speaks",
        line(10.5, "us-west", bytes_in=70_000),  # the log has them in the order in which they ended
        line(8.0),
        line(8.5, method="GET", path="/ui"),
        line(9.0, status=413),  # was no job
        line(9.25, status=429),  # was one that found no GPU
        line(30.0),
    )
    found = read(small_fleet, path, seconds=20)
    assert [(one.at_s, one.region, one.size) for one in found] == [
        (0.0, "us-east", 20_000),
        (1.25, "us-east", 20_000),
        (2.5, "us-west", 70_000),
    ]
    twice = read(small_fleet, path, speed=2.0, seconds=20)
    assert [one.at_s for one in twice] == [0.0, 0.625, 1.25, 11.0]
    # Older logs do not say whose edge wrote them.
    old = log(line(8.0, edge=""), name="old.log")
    assert [one.region for one in read(small_fleet, f"eu-west={old}")] == ["eu-west"]


def test_a_body_has_the_recorded_size_and_a_picture_that_is_still_one():
    form = make_form(None)
    for size in (len(form.body) + 12, 20_000, 3_000_000):
        body = form.sized(size)
        assert len(body) == size
        picture = body[body.index(b"\x89PNG") : body.rindex(b"\r\n--stillmotion")]
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert image.size == (64, 64)
    assert form.sized(0) == form.sized(5) == form.body


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: is no line of an access log"),
        ([line(1.0), line(2.0, "mars")], "line 2: mars is none of the fleet's regions"),
        ([line(1.0, edge=None)], "line 1: does not say whose edge wrote it"),
        ([line(1.0, time="yesterday")], "line 1: is no line of an access log"),
        ([line(1.0, path="/ui")], "there is no job in it"),
    ],
)
def test_a_log_that_cannot_be_replayed_is_named_with_its_line(log, small_fleet, lines, said):
    with pytest.raises(InputError, match=said):
        read(small_fleet, log(*lines))
    with pytest.raises(InputError, match="cannot be read"):
        read(small_fleet, "missing.log")


def test_a_scenario_finds_its_log_beside_itself(log, small_fleet, tmp_path):
    log(line(1.0), line(2.0))
    content = {
        "name": "yesterday",
        "duration_s": 20,
        "traffic": {"replay": {"logs": ["access.log"], "speed": 2}},
        "thresholds": {"http_req_failed": ["rate<0.01"], "http_req_duration{region:all}": ["p(95)<2000", "med<=900"]},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(content))
    scenario = load_scenario(tmp_path / "one.yaml")
    see_that_it_fits(scenario, small_fleet, Timed(1.0))
    found = {key: one.model_dump() for key, one in scenario.keyed_objectives()}
    assert sorted(one["kind"] for one in found.values()) == ["failed", "latency", "latency"]
    assert found["thresholds.http_req_failed.0"]["at_most"] == 0.01
    slow = found["thresholds.http_req_duration{region:all}.0"]
    assert (slow["quantile"], slow["at_most_s"], slow["regions"]) == (0.95, 2.0, "all")
    assert found["thresholds.http_req_duration{region:all}.1"]["quantile"] == 0.5


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ({"http_req_faild": ["rate<0.01"]}, "thresholds: http_req_faild is no metric with an objective here"),
        ({"http_req_failed": ["p(95)<1"]}, r"thresholds.http_req_failed.0: p\(95\)<1 is no threshold that can be"),
        ({"http_req_duration": ["avg<200"]}, "thresholds.http_req_duration.0: avg<200 is no threshold"),
        ({"http_req_duration": ["p(95)<1.2.3"]}, "has no number where one should be"),
        ({"http_req_duration": ["p(100)<200"]}, "thresholds.http_req_duration.0.quantile: should be less than 1"),
        ({"http_req_failed": ["rate>0.9"]}, "rate>0.9 is no threshold"),
        ({"http_req_failed": "rate<0.1"}, "thresholds.http_req_failed"),
        ({}, "objectives: should hold at least one, or give thresholds"),
    ],
)
def test_a_threshold_that_is_none_here_is_named_with_its_key(tmp_path, thresholds, said):
    content = {"name": "x", "duration_s": 20, "traffic": {"load": 0.4}, "thresholds": thresholds}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=said):
        load_scenario(tmp_path / "x.yaml")


def test_latency_is_judged_as_all_else_is(recorded, small_fleet, tmp_path):
    run = recorded(small_fleet).add(900, "us-east", "us-east", wait_s=0.1).add(100, "us-east", "us-east", wait_s=5.0)
    content = {"name": "x", "duration_s": 20, "traffic": {"load": 0.4}}
    verdicts = {}
    for text in ("p(85)<2000", "p(95)<2000"):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump({**content, "thresholds": {"http_req_duration": [text]}}))
        ((_, one),) = load_scenario(tmp_path / "x.yaml").keyed_objectives()
        verdicts[text] = one.judge(run.run).verdict
    assert verdicts == {"p(85)<2000": "passed", "p(95)<2000": "failed"}


@pytest.mark.parametrize(("kind", "resource"), [("loss", "PodChaos"), ("slow", "NetworkChaos")])
def test_a_failure_is_what_chaos_mesh_takes(capsys, monkeypatch, custom_resources, kind, resource):
    monkeypatch.setenv("STILLMOTION_FAULT_SECONDS", "45")
    monkeypatch.setenv("STILLMOTION_FAULT_SLOWNESS", "1.5")
    assert main(["chaos", "begin", kind, "us-east"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["kind"] == resource
    assert list(custom_resources[resource].iter_errors(found)) == []
    assert found["spec"]["duration"] == "45s"
    assert found["spec"]["selector"]["labelSelectors"]["stillmotion-region"] == "us-east"
    if kind == "slow":
        assert found["spec"]["delay"]["latency"] == "312ms"  # a quarter of half of 2.5 s
        monkeypatch.setenv("STILLMOTION_FAULT_SLOWNESS", "9")
        main(["chaos", "begin", kind, "us-east"])
        latency = yaml.safe_load(capsys.readouterr().out)["spec"]["delay"]["latency"]
        assert latency == f"{LONGEST_DELAY_S * 1000:.0f}ms"


def test_the_hook_applies_a_failure_and_takes_it_away(tmp_path):
    """By a `kubectl` that notes what it is told."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\ncat > {tmp_path}/given\n')
    kubectl.chmod(0o755)
    failure = Failure(at_s=1.0, region="us-east")
    command = f"{sys.executable} -m loadtests chaos --kubectl '{kubectl} --context {{region}}'"
    hook = Hook(command)
    hook.begin(failure, 30.0)
    assert yaml.safe_load((tmp_path / "given").read_text())["spec"]["duration"] == "30s"
    hook.end(failure)
    assert (tmp_path / "said").read_text().splitlines() == [
        "--context us-east apply -f -",
        "--context us-east delete --ignore-not-found -f -",
    ]
    kubectl.write_text("#!/bin/sh\necho no cluster >&2\nexit 1\n")
    with pytest.raises(RoutingError, match="ended with 1: no cluster"):
        hook.begin(failure, 30.0)


@pytest.mark.slow
def test_a_log_is_replayed_on_a_fleet_at_twice_its_speed(log, drill, tmp_path):
    regions = ("us-east", "us-west", "eu-west")
    path = log(*(line(i / 6, regions[i % 3]) for i in range(96)))
    status, found, said = drill("--replay", path, "--speed", "2", "--out", tmp_path / "out")
    one = found["scenarios"]["replay"]
    if status == 3 and not one["generator"]["kept_up"]:
        pytest.skip(f"this machine is too busy to send on time: {one['void']}")
    assert status == 0, said
    assert {name: region["requests"] for name, region in one["regions"].items()} == dict.fromkeys(regions, 32)
    assert "replay: 9 s" in said


def test_wrong_use_of_a_replay_is_one_line(log, capsys, tmp_path):
    fleet = Path(__file__).parents[2] / "docs/examples/small-fleet.yaml"
    arguments = ["run", "--fleet", str(fleet), "--out", str(tmp_path / "out"), "--replay", str(log(line(1.0)))]
    assert main([*arguments, "--speed", "0"]) == 2
    assert "speed: should be greater than 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
