"""The corpus of odd files, through the commands that read them: each is used, or refused in a line."""

import json
import runpy
import time
from pathlib import Path

import pytest

from routing.cli import main

MADE = runpy.run_path(str(Path(__file__).parent / "make.py"))


def cases(kind):
    return [pytest.param(one, id=one.name) for one in MADE["KINDS"][kind]()]


@pytest.fixture
def plain_fleet(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(MADE["FLEET"])
    return path


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command on an odd file; its document, or None after it has refused the file in a line."""

    def run(odd, name, *arguments):
        path = tmp_path / odd.name
        path.write_bytes(odd.content)
        status = main([name, "--json", *(str(path if one == "FILE" else one) for one in arguments)])
        out, said = capsys.readouterr()
        if odd.said is None:
            assert (status, said) == (0, ""), said
            return json.loads(out)
        assert (status, out) == (2, ""), said
        assert odd.said in said
        assert len(said.splitlines()) == 1
        assert len(said) < 500
        return None

    return run


@pytest.mark.parametrize("odd", cases("histories"))
def test_an_odd_history_is_used_as_it_is_meant_or_refused(odd, command, plain_fleet, tmp_path):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"model": "animator:1", "rungs": [{"name": "student", "times_s": [1.0]}]}))
    (tmp_path / "alone.yaml").write_text("goal: {lose_a_region: false}\npeak_within: 1.0\n")
    found = command(
        odd, "capacity", "--traffic", "FILE", "--fleet", plain_fleet, "--service-time", bench,
        "--scenario", tmp_path / "alone.yaml", "--no-sensitivity",
    )  # fmt: skip
    if found is not None:
        most = 243 if odd.name.endswith(".parquet") else 147
        assert 0.9 * most / 3600 <= found["regions"]["c"]["peak_rps"] <= most / 3600


@pytest.mark.parametrize("odd", cases("fleets"))
def test_an_odd_fleet_is_rendered_or_refused(odd, command, tmp_path):
    command(odd, "render", "--fleet", "FILE", "--out", tmp_path / "out")
    assert (tmp_path / "out").exists() == (odd.said is None)


@pytest.mark.parametrize("odd", cases("scenarios"))
def test_an_odd_scenario_is_simulated_or_refused(odd, command, plain_fleet):
    began = time.process_time()
    found = command(odd, "simulate", "--scenario", "FILE", "--fleet", plain_fleet)
    if found is None:
        assert time.process_time() - began < 60, "it was computed before it was refused"
    else:
        assert found["requests"] > 0


@pytest.mark.parametrize("odd", cases("traces"))
def test_an_odd_trace_is_simulated_or_refused(odd, command, plain_fleet, tmp_path):
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(MADE["SCENARIO"])
    found = command(odd, "simulate", "--arrivals", "FILE", "--scenario", scenario, "--fleet", plain_fleet)
    assert found is None or found["requests"] == 2


@pytest.mark.parametrize(
    ("planning", "text"),
    [
        ("growth: 1.0e+9", "would need"),
        ("launches: [{name: x, factor: 1.0e+9, day: monday, from_hour: 0, hours: 1}]", "would need"),
        ("peak_within: 1.0e+9", "would need"),
        ("service_time_factor: 1.0e+9", "would need"),
        ("service_time_factor: 1.0e-9", "a request takes 1e-09 s on a GPU, and 0.0001 s is the least"),
    ],
)
def test_a_plan_without_bound_is_refused(planning, text, plain_fleet, tmp_path, capsys):
    history, bench, file = tmp_path / "history.csv", tmp_path / "bench.json", tmp_path / "capacity.yaml"
    history.write_bytes(next(MADE["histories"]()).content)
    bench.write_text(json.dumps({"model": "animator:1", "rungs": [{"name": "student", "times_s": [1.0]}]}))
    file.write_text(planning + "\n")
    arguments = ["--traffic", history, "--fleet", plain_fleet, "--service-time", bench, "--scenario", file]
    assert main(["capacity", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert len(said.splitlines()) == 1
