"""Objectives on recorded requests: what each lets pass, and what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.simulate.scenario import Failure
from loadtests.findings import judge_share
from loadtests.generator import Limits, complaints
from loadtests.objective_kinds import KINDS, parse_objective
from loadtests.roles import Others
from loadtests.verdict import judge, lines


def finding(run, kind, **values):
    return parse_objective({"kind": kind, **values}, "objectives.0").judge(run.run)


def test_failures_are_judged_by_more_than_chance(recorded, small_fleet):
    run = recorded(small_fleet).add(990, "us-east", "us-east").add(10, "us-east", status=429, attempts=20)
    assert finding(run, "failed", at_most=0.005).verdict == "passed"  # 1 % of a thousand may be 0.5 %
    run.add(30, "us-east", status=502)
    found = finding(run, "failed", at_most=0.005)
    assert found.verdict == "failed"
    assert found.measured == pytest.approx(40 / 1030)
    assert found.low < found.measured < found.high
    assert finding(run, "failed", at_most=0.005, regions="us-west").verdict == "not judged"
    assert finding(run, "refused", at_most=0.005).measured == pytest.approx(10 / 1030)


@given(st.integers(30, 5000), st.floats(0.01, 0.99), st.sampled_from([2.0, 3.0]))
def test_a_share_that_is_exactly_at_the_limit_is_never_failed(count, limit, sigma):
    share = round(limit * count)
    assert judge_share("x", "x", share, count, at_most=share / count, sigma=sigma).verdict == "passed"
    assert judge_share("x", "x", share, count, at_least=share / count, sigma=sigma).verdict == "passed"


def test_few_requests_are_not_judged_and_never_passed(recorded, small_fleet):
    run = recorded(small_fleet).add(10, "us-east", "us-east")
    objectives = [parse_objective({"kind": "failed", "at_most": 0.01}, "")]
    verdict = judge(run.run, objectives, [])
    assert verdict.outcome == "void"
    assert verdict.outcome.exit_status == 3
    assert "10 requests are too few to tell" in verdict.reasons[0]


def test_home_attempts_and_waits(recorded, small_fleet):
    run = recorded(small_fleet)
    run.add(900, "us-east", "us-east", attempts=2, wait_s=0.2).add(100, "us-east", "us-west", attempts=9, wait_s=2.5)
    assert finding(run, "at_home", at_least=0.9).verdict == "passed"
    assert finding(run, "at_home", at_least=0.95).verdict == "failed"
    assert finding(run, "attempts", quantile=0.95, at_most=9).verdict == "passed"
    assert finding(run, "attempts", quantile=0.95, at_most=8).verdict == "failed"
    assert finding(run, "wait", quantile=0.95, at_most_jobs=6).verdict == "passed"
    assert finding(run, "wait", quantile=0.95, at_most_jobs=4).verdict == "failed"  # 2.5 s is five jobs
    assert finding(run, "wait", quantile=0.85, at_most_jobs=4).verdict == "passed"


def hot(recorded, fleet, home, near, far=0, **more):
    """us-east is asked for 120 % of its capacity from 50 s to 100 s, and its first attempts go there."""
    run = recorded(fleet, **more)
    for to, count in (("us-east", home), ("us-west", near), ("eu-west", far)):
        run.add(count, "us-east", to, at_s=(50, 99.9))
    for region in ("us-west", "eu-west"):
        run.add(140, region, region, at_s=(50, 99.9))  # 35 %
    return run


def test_overflow_has_to_leave_as_the_fleet_file_plans(recorded, small_fleet):
    # 480 requests in 50 s are 9.6 a second, 120 % of what it can compute; 80 % stay.
    leaves = {"kind": "leaves", "regions": "us-east", "from_s": 50}
    assert finding(hot(recorded, small_fleet, 320, 160), **leaves).verdict == "passed"
    stuck = finding(hot(recorded, small_fleet, 480, 0), **leaves)
    assert stuck.verdict == "failed"
    assert "0 of 480" in stuck.why
    assert finding(hot(recorded, small_fleet, 50, 430), **leaves).verdict == "failed"
    cool = finding(hot(recorded, small_fleet, 320, 160), kind="leaves", regions="us-west", from_s=50)
    assert cool.verdict == "not judged"
    assert not cool.needed


def test_near_comes_before_far(recorded, small_fleet):
    order = {"kind": "ring_order", "regions": "us-east", "more_than_planned": 0.03, "from_s": 50}
    assert finding(hot(recorded, small_fleet, 320, 155, 5), **order).verdict == "passed"
    assert finding(hot(recorded, small_fleet, 320, 80, 80), **order).verdict == "failed"
    follows = {"kind": "follows_plan", "regions": "us-east", "within": 0.1, "from_s": 50}
    assert finding(hot(recorded, small_fleet, 320, 155, 5), **follows).verdict == "passed"
    assert finding(hot(recorded, small_fleet, 480, 0), **follows).verdict == "failed"


def test_the_plan_knows_that_a_region_is_lost(recorded, small_fleet):
    failures = (Failure(at_s=0.0, region="us-east"),)
    run = recorded(small_fleet, failures=failures).add(200, "us-east", "us-west").run
    assert run.planned(10.0, 90.0)["us-east"].get("us-east", 0.0) == 0.0
    assert recorded(small_fleet).add(200, "us-east", "us-west").run.planned(10.0, 90.0)["us-east"]["us-east"] > 0.9


def test_a_region_without_others_around_has_nothing_to_judge(recorded, small_fleet):
    run = recorded(small_fleet, roles={"nobody": Others(others="all")}).add(100, "us-east", "us-east")
    found = finding(run, "failed", at_most=0.1, regions="nobody")
    assert (found.verdict, found.needed) == ("not judged", False)
    run = recorded(small_fleet).add(100, "us-east", "us-east")
    objectives = [parse_objective({"kind": "leaves", "regions": "us-east"}, "")]
    assert judge(run.run, objectives, []).reasons == ("no objective could be judged",)


def test_recovery_is_over_with_the_last_bin_that_is_not_well(recorded, small_fleet):
    run = recorded(small_fleet).add(400, "us-east", "us-east", at_s=(0, 99.9))
    run.add(60, "us-east", "us-east", at_s=(40, 64.9), wait_s=5.0)
    recovers = {"kind": "recovers", "after_s": 40, "wait_jobs": 2}
    found = finding(run, within_s=30, **recovers)
    assert (found.verdict, found.measured) == ("passed", 25.0)
    assert finding(run, within_s=20, **recovers).verdict == "failed"
    run.add(40, "us-east", status=429, at_s=(90, 99.9), attempts=20)
    assert finding(run, within_s=50, **recovers).why == "not before the end"


def test_a_cascade_is_seen_where_there_should_be_no_trouble(recorded, small_fleet):
    spared = {"kind": "no_cascade", "regions": "us-west"}
    run = recorded(small_fleet).add(200, "us-west", "us-west").add(100, "us-east", status=429)
    assert finding(run, **spared).verdict == "passed"
    assert finding(run.add(20, "us-west", status=429), **spared).verdict == "failed"
    slow = recorded(small_fleet).add(200, "us-west", "us-west", wait_s=4.0)
    assert "wait" in finding(slow, **spared).why
    pushed = recorded(small_fleet).add(100, "us-west", "us-west").add(100, "us-west", "us-east")
    assert "at home" in finding(pushed, **spared).why


def test_a_control_loop_that_is_silent_or_does_nothing_is_seen(recorded, observed, small_fleet):
    def tables(seen):
        run = recorded(small_fleet, observed=seen).add(100, "us-east", "us-east")
        return finding(run, "tables", at_least=2)

    assert tables(observed(4, 0.1)).verdict == "passed"
    assert tables(observed(1, 0.0)).verdict == "failed"
    assert tables(observed(4, 0.9)).verdict == "failed"
    assert tables(observed()).verdict == "not judged"
    assert not tables(observed()).needed


def test_each_kind_says_what_it_expects(recorded, small_fleet):
    needed = {"failed": {"at_most": 0.1}, "refused": {"at_most": 0.1}, "at_home": {"at_least": 0.5}}
    needed |= {"attempts": {"at_most": 3}, "wait": {"at_most_jobs": 2}}
    needed |= {"recovers": {"after_s": 10, "within_s": 5}, "latency": {"at_most_s": 5}}
    run = recorded(small_fleet).add(100, "us-east", "us-east")
    texts = {finding(run, kind, **needed.get(kind, {})).text for kind in KINDS}
    assert len(texts) == len(KINDS)


def judged(run, planned=None, limits=None, objective=None):
    reasons = list(complaints(limits or Limits(), run.tally, run.tally.arrivals if planned is None else planned))
    return judge(run.run, [parse_objective(objective or {"kind": "failed", "at_most": 0.01}, "")], reasons)


def test_a_good_run_passes_and_a_bad_one_fails(recorded, small_fleet):
    verdict = judged(recorded(small_fleet).add(500, "us-east", "us-east"))
    assert (verdict.outcome, verdict.outcome.exit_status, verdict.reasons) == ("passed", 0, ())
    verdict = judged(recorded(small_fleet).add(500, "us-east", "us-east").add(50, "us-east", status=429))
    assert (verdict.outcome, verdict.outcome.exit_status) == ("failed", 1)
    assert lines(verdict)[-1] == "verdict: failed"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: run.add(100, "us-east", "us-east", late_s=0.4), "left more than 0.1 s late"),
        (lambda run: setattr(run.tally, "dropped", 3), "3 of 500 arrivals were dropped"),
        (lambda run: setattr(run.tally, "cpu_percent", 99.0), "99 % of a core"),
        (lambda run: run.tally.arrived(50.0, "us-east"), "1 requests were not waited for"),
        (
            lambda run: run.add(60, "us-west", status=-1, problem="no connection"),
            "the edge of us-west could not be reached",
        ),
        (lambda run: run.add(50, "us-east", status=200, problem="not stillmotion"), "answers are not stillmotion's"),
    ],
)
def test_a_generator_that_cannot_tell_makes_the_run_void(recorded, small_fleet, break_it, said):
    run = recorded(small_fleet).add(500, "us-east", "us-east")
    break_it(run)
    verdict = judged(run)
    assert verdict.outcome == "void", verdict
    assert any(said in reason for reason in verdict.reasons), verdict.reasons


def test_a_run_that_was_cut_short_is_void_even_if_all_was_well(recorded, small_fleet):
    verdict = judged(recorded(small_fleet).add(500, "us-east", "us-east"), planned=900)
    assert verdict.outcome == "void"
    assert "only 500 of 900 arrivals" in verdict.reasons[0]
    assert judged(recorded(small_fleet)).outcome == "void"
