import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from laboratory.simulate.scenario import load_experiment
from laboratory.tune.goal import Figures, Goal, SimulatedFleet, confirm, load_goal, missed, score
from laboratory.tune.search import dimensions, fragment, place_of, policy_at, policy_of, tune, with_policy
from routing.cli import main
from routing.errors import InputError
from routing.fleet import load_fleet

GOOD = Figures(0.0, 0.9, 1.1, 2.0, 0.1, 0.5, 0.8)
GOAL = {"limits": {"failure_share": 0.01, "p95_wait_s": 1.0, "in_region_share": 0.5}}


@pytest.fixture
def goal():
    return Goal.model_validate(GOAL)


def test_limits_that_are_missed_are_named_with_how_far(goal):
    assert missed(GOOD, goal) == {}
    bad = replace(GOOD, failure_share=0.03, in_region_share=0.4)
    assert missed(bad, goal) == pytest.approx({"failure_share": 2.0, "in_region_share": 0.2})


def test_whatever_misses_a_limit_is_worse_than_all_that_do_not(goal):
    slow = replace(GOOD, mean_wait_s=500.0, attempts_per_request=9.0)
    near = replace(GOOD, p95_wait_s=1.001, mean_wait_s=0.0)
    far = replace(GOOD, p95_wait_s=3.0, mean_wait_s=0.0)
    scores = [score([one], goal, 1.0) for one in (GOOD, slow, near, far)]
    assert scores == sorted(scores)
    assert scores[0] < scores[1] < scores[2] < scores[3]
    assert score([GOOD], goal, 1.0) == pytest.approx(0.1 + 0.1)


def test_one_miss_of_several_runs_is_a_miss(goal):
    assert score([GOOD, GOOD, replace(GOOD, failure_share=0.02)], goal, 1.0) > 10


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9))
@settings(max_examples=50)
def test_each_place_is_a_fleet_that_can_be_written_and_read_again(example_fleet, tmp_path_factory, places):
    fleet = example_fleet
    bounds = [one.bounds for one in dimensions(fleet)]
    x = [low + part * (high - low) for part, (low, high) in zip(places, bounds, strict=True)]
    policy = policy_at(fleet, x)
    found = with_policy(fleet, policy)
    content = example_fleet.model_dump(mode="json", exclude_unset=True)
    content |= yaml.safe_load(fragment(found))
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    again = load_fleet(path)
    assert (again.retry, again.thresholds, again.target_load) == (found.retry, found.thresholds, found.target_load)
    assert policy_at(fleet, place_of(fleet, policy)).attempts == policy.attempts


def test_the_fleets_own_policy_is_a_place_in_the_search(example_fleet):
    policy = policy_of(example_fleet)
    assert policy.attempts == 9
    again = policy_at(example_fleet, place_of(example_fleet, policy))
    assert (again.base_interval_s, again.max_interval_s) == (policy.base_interval_s, policy.max_interval_s)
    assert (again.first_threshold, again.target_load) == (policy.first_threshold, policy.target_load)
    assert with_policy(example_fleet, policy).thresholds == example_fleet.thresholds


class Bowl:
    """A fleet whose waits are least at 4 attempts and a base of 0.5 s, without simulating anything."""

    def __init__(self):
        self.runs = 0

    def measure(self, _experiment, fleet, _seed):
        self.runs += 1
        off = abs(fleet.retry.attempts - 4) + abs(fleet.retry.base_interval_s - 0.5)
        return replace(GOOD, mean_wait_s=off, failure_share=0.0 if fleet.retry.attempts > 2 else 0.5)


@pytest.fixture
def herd(examples):
    return load_experiment(examples / "scenarios" / "herd.yaml")


def test_a_search_finds_the_best_and_tries_no_policy_twice(herd):
    goal = Goal.model_validate(GOAL | {"search": {"generations": 20, "population": 3}})
    bowl, seen = Bowl(), []
    found = tune([herd], goal, 3, fleet_under_test=bowl, progress=lambda count, best: seen.append((count, best.score)))
    assert found.best.policy.attempts == 4
    assert found.best.policy.base_interval_s == pytest.approx(0.5, abs=0.2)
    assert found.best.met
    assert found.holds
    assert found.trials[0] == found.before
    assert bowl.runs == len(found.trials) + 3
    assert [best for _, best in seen] == sorted((best for _, best in seen), reverse=True)


def test_a_search_is_the_same_for_the_same_seed(herd):
    goal = Goal.model_validate(GOAL | {"search": {"generations": 2, "population": 2}})
    one, same, other = (tune([herd], goal, seed, fleet_under_test=Bowl()) for seed in (1, 1, 2))
    assert one.trials == same.trials
    assert one.trials != other.trials


def test_a_goal_that_nothing_meets_is_said_not_to_be_met(herd):
    goal = Goal.model_validate({"limits": {"p95_wait_s": 1e-6}, "search": {"generations": 1, "population": 2}})
    found = tune([herd], goal, fleet_under_test=Bowl())
    assert not found.best.met
    assert not found.holds


def test_a_fleet_agrees_within_ten_percent_or_a_point():
    fine = confirm(GOOD, replace(GOOD, failure_share=0.009, attempts_per_request=1.19, p95_wait_s=0.54))
    assert all(one.agrees for one in fine)
    off = confirm(GOOD, replace(GOOD, failure_share=0.02, p95_wait_s=0.6))
    assert [one.name for one in off if not one.agrees] == ["failure_share", "p95_wait_s"]


def test_the_simulator_is_a_fleet_under_test(herd):
    found = SimulatedFleet().measure(herd, herd.fleet, 0)
    assert 1.0 <= found.attempts_per_request < 1.5
    assert found.p99_wait_s > 0


@pytest.fixture
def run(examples, tmp_path, capsys):
    """Runs the command with a goal; (status, document or text, what was said)."""

    def run(goal, *more):
        path = tmp_path / "goal.yaml"
        path.write_text(yaml.safe_dump(goal))
        short = yaml.safe_load((examples / "scenarios" / "herd.yaml").read_text())
        short |= {"fleet": str(examples / "fleet.yaml"), "duration_s": 60, "warm_up_s": 10, "arrivals": {"load": 0.5}}
        (tmp_path / "herd.yaml").write_text(yaml.safe_dump(short))
        status = main(["tune", "--scenario", str(tmp_path / "herd.yaml"), "--goal", str(path), *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_tunes_reports_and_draws(run, tmp_path, example_fleet):
    goal = GOAL | {"search": {"generations": 1, "population": 2}}
    status, out, said = run(goal, "--json", "--plot", str(tmp_path / "tune.png"))
    found = json.loads(out)
    assert status == 0
    assert "policies tried" in said
    assert found["best"]["score"] <= found["before"]["score"]
    assert found["goal_met"] is True
    assert len(found["trials"]) > 18
    assert (tmp_path / "tune.png").read_bytes()[:4] == b"\x89PNG"
    part = yaml.safe_load(found["fleet_yaml"])
    assert part.keys() == {"thresholds", "target_load", "retry"}
    assert [one["ring"] for one in part["thresholds"]] == [one.ring for one in example_fleet.thresholds]


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        ({"limits": {}}, "goal.yaml: limits.failure_share: is missing, and so are all other limits; give one"),
        ({"limits": {"failures": 0.1}}, "limits.failures: unknown key; did you mean failure_share?"),
        ({"limits": {"failure_share": 2}}, "limits.failure_share: should be less than or equal to 1"),
        ({}, "limits: is missing"),
    ],
)
def test_an_error_names_the_file_and_the_key(run, goal, text):
    status, out, said = run(goal) if goal else run({"weights": {}})
    assert (status, out) == (2, "")
    assert text in said


def test_scenarios_need_names_of_their_own(run, examples):
    again = str(examples / "scenarios" / "herd.yaml")
    status, _, said = run(GOAL, "--scenario", again, again)
    assert status == 2
    assert "herd.yaml: name: has the name of another scenario" in said


def test_the_example_goal_can_be_read(examples):
    assert load_goal(examples / "goal.yaml").limits.failure_share == 0.01
    with pytest.raises(InputError, match="no such file"):
        load_goal(examples / "none.yaml")
