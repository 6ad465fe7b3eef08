import pytest

from laboratory.simulate.results import results
from laboratory.simulate.run import simulate

LOSS = {"region": "a", "at_s": 100.0, "until_s": 200.0}


def at(outcome, time_s):
    return next(one for one in outcome.series if one.time_s == pytest.approx(time_s))


@pytest.fixture
def lossy(make):
    """Two regions, the first of which fails for a while; series of 5 s."""

    def run(failure, **more):
        settings = {"duration_s": 400.0, "series_s": 5.0, "table": "control", "arrivals": {"load": 0.3}}
        return simulate(make([40, 40], latency_ms=40.0, failures=[LOSS | failure], **(settings | more)))

    return run


def test_a_region_that_dies_loses_what_it_computes_and_others_take_over(lossy):
    outcome = lossy({})
    before, after = at(outcome, 95.0), outcome.last
    assert after.lost[0] == at(outcome, 105.0).lost[0] > 0  # at one moment
    assert after.lost[0] == pytest.approx(0.3 * 40, abs=10)
    assert after.failed.sum() == 0  # all others try again, next door
    dead = at(outcome, 195.0).served_flow - at(outcome, 110.0).served_flow
    assert dead[0, 0] == 0
    assert dead[0, 1] > 0.9 * 0.3 * 40 * 85
    home = at(outcome, 395.0).served_flow - at(outcome, 300.0).served_flow
    assert home[0, 0] > 0.9 * home[0].sum()
    assert before.lost.sum() == 0


def test_a_region_that_vanishes_costs_the_connect_timeout_until_edges_know(lossy):
    even = {one: {"a": 0.5, "b": 0.5} for one in "ab"}
    quick, slow = (lossy(one, shares=even, table="home") for one in ({}, {"vanishes": True}))
    refused, hung = (results(one)["series"]["p95_wait_s"][20] for one in (quick, slow))  # 100 to 105 s
    assert refused < 1.0
    assert 2.0 < hung < 3.0


def test_when_all_of_a_row_is_dead_edges_turn_to_the_rings_that_overflow_may_use(lossy):
    outcome = lossy({}, table="home")
    assert outcome.last.served_flow[0, 1] > 0
    assert outcome.last.failed.sum() == 0


def test_without_another_region_a_loss_fails_jobs_until_it_is_back(make):
    outcome = simulate(make([40], duration_s=400.0, series_s=5.0, arrivals={"load": 0.5}, failures=[LOSS]))
    dead = at(outcome, 195.0), at(outcome, 120.0)
    assert dead[0].failed[0] - dead[1].failed[0] == pytest.approx(75 * 20, rel=0.1)
    assert at(outcome, 300.0).failed[0] == outcome.last.failed[0]


def test_gpus_that_die_lose_their_jobs_and_the_others_go_on(make):
    failure = LOSS | {"gpus": 30}
    outcome = simulate(make([40], duration_s=400.0, series_s=5.0, arrivals={"load": 0.6}, failures=[failure]))
    assert at(outcome, 150.0).gpus[0] == 10
    assert at(outcome, 150.0).busy[0] <= 10
    assert at(outcome, 250.0).gpus[0] == 40
    assert outcome.last.lost[0] == pytest.approx(0.6 * 30, abs=8)


def test_a_slow_region_computes_longer(make):
    failure = {"region": "a", "at_s": 100.0, "until_s": 200.0, "slowness": 2.0}
    outcome = simulate(make([40], duration_s=300.0, series_s=10.0, arrivals={"load": 0.4}, failures=[failure]))
    used = results(outcome)["series"]["utilisation"]["a"]
    assert sum(used[12:18]) / 6 == pytest.approx(0.8, abs=0.08)
    assert sum(used[2:9]) / 7 == pytest.approx(0.4, abs=0.08)
    assert outcome.last.lost.sum() == 0
