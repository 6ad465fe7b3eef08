import json
import struct
import subprocess
import sys

import pytest

from laboratory.simulate.scenario import load_experiment
from routing.cli import main

KEYS = {"requests", "failures", "attempts_per_request", "in_region_share", "wait_s", "events", "events_per_s"}
NAMES = ["steady", "hot-spot", "spike", "herd", "full-house", "region-loss", "day"]


@pytest.fixture
def simulate(examples, capsys):
    """Runs the command on an example, with more arguments; the document."""

    def run(name, *more):
        assert main(["simulate", "--json", "--scenario", str(examples / "scenarios" / f"{name}.yaml"), *more]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_each_example_can_be_read(examples, name):
    assert load_experiment(examples / "scenarios" / f"{name}.yaml").scenario.duration_s > 0


def test_the_document_has_the_keys_of_the_contract(simulate):
    found = simulate("herd")
    assert found.keys() >= KEYS
    assert found["wait_s"].keys() >= {"p50", "p95", "p99"}
    assert found["requests"] == found["served"] + found["failures"]
    assert sum(found["rings"].values()) == pytest.approx(1)


def test_a_seed_is_taken_from_the_command_line(simulate):
    assert simulate("herd")["requests"] != simulate("herd", "--seed", "5")["requests"]


def test_people_get_a_table(examples, capsys):
    assert main(["simulate", "--scenario", str(examples / "scenarios" / "herd.yaml")]) == 0
    out = capsys.readouterr().out
    assert "us-west" in out
    assert "failures" in out


def test_arrivals_written_and_read_again_are_the_same_jobs(simulate, tmp_path):
    path = tmp_path / "arrivals.csv"
    first = simulate("herd", "--trace", str(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "scheduled_at_s,region"
    again = simulate("herd", "--arrivals", str(path))
    warm = sum(float(line.split(",")[0]) > 60 for line in lines[1:])
    assert again["requests"] == pytest.approx(warm, abs=60)
    for name, one in first["series"]["demand_rps"].items():
        assert again["series"]["demand_rps"][name] == pytest.approx(one, abs=1.01)


def test_a_plot_is_drawn(simulate, tmp_path):
    path = tmp_path / "run.png"
    simulate("herd", "--plot", str(path))
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">II", content[16:24])) > 500


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--scenario", "none.yaml"]])
def test_wrong_use_exits_with_2(examples, capsys, arguments):
    given = ["simulate", "--scenario", str(examples / "scenarios" / "herd.yaml"), *arguments]
    try:
        status = main(given)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert capsys.readouterr().out == ""


def test_a_plot_that_cannot_be_written_exits_with_1(examples, tmp_path, capsys):
    given = ["simulate", "--scenario", str(examples / "scenarios" / "herd.yaml")]
    assert main([*given, "--plot", str(tmp_path / "none" / "run.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_without_numba_the_command_says_what_to_install(examples):
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from routing.cli import main\n"
        f"sys.exit(main(['simulate', '--scenario', {str(examples / 'scenarios' / 'herd.yaml')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: simulations need numba: pip install 'stillmotion[laboratory]'\n"
