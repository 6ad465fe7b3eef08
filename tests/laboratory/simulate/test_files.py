"""Scenarios, traces and benchmarks as people write them."""

import json

import pytest
import yaml

from laboratory.service_times import lognormal, of_benchmark
from laboratory.simulate.scenario import load_experiment, read_trace
from routing.errors import InputError

GOOD = {"name": "x", "fleet": "fleet.yaml", "duration_s": 60, "arrivals": {"load": 0.5}}


@pytest.fixture
def load(fleet_file, tmp_path):
    """Reads a scenario after changes of a good one."""
    fleet_file()

    def read(text=None, **changes):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(GOOD | changes) if text is None else text)
        return load_experiment(path)

    return read


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"durations": 3}, "s.yaml: durations: unknown key; did you mean duration_s?"),
        ({"duration_s": 0}, "duration_s: should be greater than 0"),
        ({"warm_up_s": 60}, "warm_up_s: 60 is not below duration_s (60)"),
        ({"arrivals": {"laod": 1}}, "arrivals.laod: unknown key; did you mean load?"),
        ({"arrivals": {"rps": {"us-eats": 1}}}, "arrivals.rps: us-eats is none of the fleet's regions"),
        ({"arrivals": {"load": "high"}}, "arrivals.load: should be a number, and is 'high'"),
        ({"arrivals": {"changes": [{"at_s": 9, "until_s": 3, "factor": 2}]}}, "arrivals.changes.0.until_s: 3 is not"),
        ({"arrivals": {"bursts": [{"at_s": 9, "region": "x", "jobs": 2}]}}, "arrivals.bursts.0.region: x is none"),
        ({"proxies": {"dispatchers": 0}}, "proxies.dispatchers: should be greater than or equal to 1"),
        ({"service_time": {"kind": "gamma"}}, "service_time.kind: should be 'fixed', 'exponential', 'lognormal' or"),
        ({"service_time": {"kind": "measured"}}, "service_time.bench: is missing"),
        ({"failures": [{"at_s": 1, "region": "us-east", "gpus": 121}]}, "failures.0.gpus: 121 is more than us-east"),
        (
            {"failures": [{"at_s": 1, "region": "us-east"}, {"at_s": 2, "region": "us-east", "gpus": 1}]},
            "failures.1.at_s: us-east has another failure then",
        ),
        ({"failures": [{"at_s": 1, "region": "us-east", "slowness": 2.0, "gpus": 3}]}, "failures.0.slowness: is for"),
        ({"table": "nowhere.json"}, "nowhere.json: no such file"),
        ({"fleet": "none.yaml"}, "none.yaml: no such file"),
        ({"arrivals": {"trace": "none.csv"}}, "none.csv: no such file"),
    ],
)
def test_an_error_names_the_file_and_the_key(load, changes, text):
    with pytest.raises(InputError) as caught:
        load(**changes)
    assert text in str(caught.value)


def test_an_empty_scenario_is_an_error(load):
    with pytest.raises(InputError, match="is empty"):
        load(text="")


def test_a_day_needs_longitudes_or_offsets(load, fleet_file):
    def without(content):
        content["latency_ms"] = {one: dict.fromkeys(content["regions"], 9.0) for one in content["regions"]}
        for one, row in content["latency_ms"].items():
            del row[one]
        for region in content["regions"].values():
            del region["latitude"], region["longitude"]

    fleet_file(without)
    with pytest.raises(InputError, match=r"arrivals\.day\.utc_offset: us-east is missing"):
        load(arrivals={"load": 0.5, "day": {}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("time,region\n1,us-east\n", "has no column scheduled_at_s"),
        ("scheduled_at_s,region\nsoon,us-east\n", "line 2: scheduled_at_s is no number: soon"),
        ("scheduled_at_s,region\n1,us-east\nnan,us-east\n", "line 3: scheduled_at_s is nan"),
        ("scheduled_at_s,region\n-1,us-east\n", "line 2: scheduled_at_s is -1"),
        ("scheduled_at_s,region\n1,us-eats\n", "line 2: us-eats is none of the fleet's regions; did you mean us-east?"),
        ("scheduled_at_s,region\n1\n", "line 2: has 1 cells, and the header 2"),
        ("scheduled_at_s,region\n99,us-east\n", "has no arrival in the scenario's 60 s"),
        ("", "has no column scheduled_at_s"),
    ],
)
def test_a_trace_that_cannot_be_used_is_an_error_with_its_line(example_fleet, tmp_path, text, problem):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_trace(path, example_fleet, 60.0)
    assert problem in str(caught.value)


def test_a_trace_is_put_in_order_and_cut_at_the_end(example_fleet, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("region,scheduled_at_s,prompt\nus-east,3,x\nus-west,1.5,y\nus-east,61,z\n")
    assert read_trace(path, example_fleet, 60.0) == ((1.5, "us-west"), (3.0, "us-east"))


BENCH = {
    "model": "animator:1",
    "rungs": [
        {"name": "teacher", "kept": True, "median_s": 3.0, "times_s": [3.0, 3.1]},
        {"name": "solver", "kept": True, "median_s": 1.0, "times_s": [0.9, 1.0, 1.1]},
        {"name": "bfloat16", "kept": False, "median_s": 2.0, "times_s": [2.0]},
        {"name": "pass", "kept": True, "partial": True, "median_s": 0.1, "times_s": [0.1]},
    ],
}


@pytest.fixture
def bench(tmp_path):
    def write(content):
        path = tmp_path / "bench.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_benchmark_gives_the_times_of_the_last_rung_that_was_kept(bench):
    assert of_benchmark(bench(BENCH)).atoms.tolist() == [0.9, 1.0, 1.1]
    assert of_benchmark(bench(BENCH), rung="teacher", model="animator:1").mean_s == pytest.approx(3.05)


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        (BENCH, {"model": "animator:2"}, "bench.json: model: is of animator:1, and animator:2 is asked for"),
        (BENCH, {"rung": "solvr"}, "rungs: there is none named solvr; did you mean solver?"),
        (BENCH, {"rung": "pass"}, "rungs.pass: was measured on a part of a request only"),
        ({"requests": 3}, {}, "is no benchmark"),
        ({"rungs": [{"median_s": 1}]}, {}, "rungs.0: has no name"),
        ({"rungs": []}, {}, "rungs: none was kept and measured in full"),
        ({"rungs": [{"name": "a", "times_s": [1, -1]}]}, {}, "rungs.a: has a time that is no positive number"),
        ({"rungs": [{"name": "a", "times_s": [True]}]}, {}, "rungs.a: has a time that is no positive number"),
        ("{", {}, "line 1: is no JSON"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_an_error(bench, content, options, text):
    with pytest.raises(InputError) as caught:
        of_benchmark(bench(content), **options)
    assert text in str(caught.value)


@pytest.mark.parametrize("cv", [0.05, 0.3, 1.0])
def test_a_lognormal_has_the_mean_and_deviation_that_it_is_given(cv):
    found = lognormal(2.5, cv)
    assert found.atoms.mean() == pytest.approx(2.5, rel=1e-7)
    assert found.cv == pytest.approx(cv, rel=0.02)
