"""The policy that was found, on a fleet of real Envoys."""

import json

import pytest
import yaml

from routing.cli import main
from routing.envoy.binary import find_envoy
from routing.errors import RoutingError

GOAL = {"limits": {"failure_share": 0.05}, "search": {"generations": 1, "population": 2}}


@pytest.fixture
def tune(examples, tmp_path, capsys):
    """Runs the command with a scenario on the small fleet; (status, document, what was said)."""

    def run(**more):
        scenario = {
            "name": "steady",
            "fleet": str(examples / "small-fleet.yaml"),
            "duration_s": 20.0,
            "warm_up_s": 4.0,
            "control": {"interval_s": 2.0},
            "arrivals": {"load": 0.6},
        }
        (tmp_path / "steady.yaml").write_text(yaml.safe_dump(scenario | more))
        (tmp_path / "goal.yaml").write_text(yaml.safe_dump(GOAL))
        files = ["--scenario", str(tmp_path / "steady.yaml"), "--goal", str(tmp_path / "goal.yaml")]
        status = main(["tune", *files, "--confirm", "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return run


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"failures": [{"at_s": 5.0, "region": "us-east"}]}, "failures: cannot be made to happen"),
        ({"duration_s": 3600.0}, "duration_s: 3600 s in real time"),
        ({"proxies": {"dispatchers": 2}}, "proxies: a real fleet has one dispatcher"),
        ({"arrivals": {"rps": {"us-east": 500.0}}}, "arrivals: 5"),
        ({"control": {"down": [{"at_s": 1.0}]}}, "control.down: cannot be made to happen"),
    ],
)
def test_what_a_real_fleet_cannot_do_is_refused_before_the_search(tune, more, said):
    status, found, err = tune(**more)
    assert (status, found) == (2, None)
    assert said in err
    assert "steady.yaml" in err
    assert "policies tried" not in err


@pytest.mark.slow
def test_the_choice_is_confirmed_on_a_real_fleet(tune):
    try:
        find_envoy()
    except RoutingError as error:
        pytest.skip(str(error))
    status, found, err = tune()
    assert status == 0, err
    real = found["real"]["steady"]
    measured = {row["name"]: row["measured"] for row in real["figures"]}
    assert 0 <= measured["failure_share"] < 0.3
    assert measured["in_region_share"] > 0.5
    assert real["met"] == (measured["failure_share"] <= 0.05)
    assert found["goal_met"] <= real["met"]
