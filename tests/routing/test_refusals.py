"""What a command refuses before it works, what it cleans up after, and what it exits with."""

import fcntl
import json

import pytest
import yaml

from laboratory.local.records import ABOUT as ABOUT_FILE
from laboratory.local.records import LOCK, STATE, WANTED
from routing.cli import main

FLEET = {
    "regions": {"a": {"gpus": 2}, "b": {"gpus": 2}, "c": {"gpus": 2}},
    "latency_ms": {"a": {"b": 20, "c": 20}, "b": {"c": 20}},
    "service_time_s": 0.5,
    "rings_ms": [30],
    "thresholds": [{"load": 0.75, "ring": 1}],
    "target_load": 0.75,
}


@pytest.fixture
def fleet_of(tmp_path):
    """Writes a fleet of these regions of `FLEET`, and gives its path."""

    def write(*names, **changes):
        content = FLEET | {"regions": {name: FLEET["regions"][name] for name in names}} | changes
        content["latency_ms"] = {
            "a": {name: 20 for name in names if name != "a"},
            "b": {"c": 20} if "c" in names else {},
        }
        path = tmp_path / "fleet.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def command(capsys):
    """Runs a command; (exit status, what it said)."""

    def run(*arguments):
        try:
            status = main([str(one) for one in arguments])
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", ["x.jpg", "x.svg", "x", "x.png.gz"])
def test_a_plot_that_is_no_png_is_refused_before_any_work(name, command, tmp_path):
    status, said = command("simulate", "--scenario", tmp_path / "none.yaml", "--plot", tmp_path / name)
    assert status == 2
    assert "does not end in .png" in said
    assert command("tune", "--scenario", "none.yaml", "--goal", "none.yaml", "--plot", tmp_path / name)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_control_loop_of_more_gpus_than_ports_is_refused_in_a_line(fleet_of, command, tmp_path):
    fleet = fleet_of("a", "b", regions={"a": {"gpus": 50_000}, "b": {"gpus": 2}})
    status, said = command("control", "--once", "--fleet", fleet, "--out", tmp_path / "control")
    assert status == 2
    assert "data_plane.first_port: 50010 ports from 21000 on do not end by" in said
    assert len(said.splitlines()) == 1


@pytest.fixture
def running_folder(tmp_path):
    """A folder in which a fleet seems to run: its lock is held."""
    folder = tmp_path / "up"
    folder.mkdir()
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


ABOUT = json.dumps({"fleet_file": "fleet.yaml", "servers": "stand-in", "started_at": "2025-01-31", "regions": {}})
RUNS = json.dumps({"pid": 1, "phase": "running", "components": []})


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({ABOUT_FILE: "{", STATE: RUNS}, "about.json: is damaged ("),
        ({ABOUT_FILE: "{}", STATE: RUNS}, "about.json: is damaged (fleet_file: is missing"),
        ({STATE: RUNS}, "a fleet runs there, and its about.json is missing or damaged"),
        ({ABOUT_FILE: ABOUT, STATE: "{"}, "a fleet runs there, and its state.json is missing or damaged"),
        ({ABOUT_FILE: ABOUT, STATE: RUNS}, "components.json: is missing or damaged"),
        ({ABOUT_FILE: ABOUT, STATE: RUNS, WANTED: "[]"}, "components.json: is missing or damaged"),
    ],
)
def test_a_damaged_file_does_not_make_a_running_fleet_none(files, text, running_folder, command):
    for name, content in files.items():
        (running_folder / name).write_text(content)
    status, said = command("fleet", "status", "--dir", running_folder)
    assert status in {1, 2}
    assert text in said
    assert "fleet down" in said
    assert len(said.splitlines()) == 1


def test_a_folder_without_a_fleet_has_none(command, tmp_path):
    assert command("fleet", "status", "--dir", tmp_path) == (1, f"error: {tmp_path}: no fleet runs there\n")


@pytest.mark.parametrize(("share", "status"), [(1.0, 0), (0.0, 1)])
def test_a_tuner_exits_with_whether_the_goal_is_met(share, status, fleet_of, command, tmp_path):
    fleet_of("a", "b")
    # Three times what the GPUs compute: some fail whatever the policy.
    scenario = {"name": "full", "duration_s": 20, "table": "home", "arrivals": {"load": 3.0}}
    goal = {"limits": {"failure_share": share}, "search": {"generations": 1, "population": 2}}
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(scenario))
    (tmp_path / "goal.yaml").write_text(yaml.safe_dump(goal))
    found, said = command("tune", "--scenario", tmp_path / "scenario.yaml", "--goal", tmp_path / "goal.yaml")
    assert found == status
    assert "policies tried" in said
