"""The control loop in the loop."""

import pytest

from laboratory.simulate.results import results
from laboratory.simulate.run import simulate


@pytest.fixture
def hot(make):
    """Region a at 150 %, b and c at 40 %, with a table or the loop."""

    def run(**more):
        settings = {
            "duration_s": 600.0,
            "warm_up_s": 100.0,
            "retry": {"attempts": 9, "base_interval_s": 0.05, "max_interval_s": 1.0},
            "service_s": 0.5,
            "arrivals": {"load": 0.4, "region_load": {"a": 1.5}},
        } | more
        return results(simulate(make([20, 20, 20], latency_ms=10.0, **settings)))

    return run


def test_the_loop_relieves_a_hot_region_and_keeps_what_it_can_at_home(hot):
    home, looped = hot(table="home"), hot(table="control")
    # Without a table retries find room in other regions, but late: each job is refused at home first.
    assert home["wait_s"]["p95"] > 2 * looped["wait_s"]["p95"]
    assert home["attempts_per_request"] > 1.2 * looped["attempts_per_request"]
    assert looped["failure_share"] < 0.001
    assert looped["regions"]["b"]["in_region_share"] > 0.95
    assert 0.45 < looped["regions"]["a"]["in_region_share"] < 0.7
    assert looped["tables"] > 1


def test_a_loop_that_is_down_leaves_the_table_as_it_is(hot):
    dead = hot(table="control", control={"down": [{"at_s": 0.0}]})
    assert dead["tables"] == 0
    # Retries find other regions by the rings: few jobs fail, but many try again and again.
    assert dead["attempts_per_request"] > 1.2
    assert dead["wait_s"]["p95"] > 2 * hot(table="control")["wait_s"]["p95"]


def test_decisions_count_after_their_delays(make):
    settings = {
        "duration_s": 200.0,
        "series_s": 1.0,
        "table": "control",
        "arrivals": {"load": 0.3, "changes": [{"at_s": 60.0, "factor": 4.0, "regions": ["a"]}]},
    }

    def moved_at(control):
        found = results(simulate(make([50, 50], latency_ms=10.0, control=control, **settings)))["series"]
        first = found["home_share"]["a"][50]
        return next(
            t for t, share in zip(found["time_s"], found["home_share"]["a"], strict=True) if share < first - 0.02
        )

    prompt = moved_at({"interval_s": 1.0, "metrics_age_s": 0.0, "publish_s": 0.0})
    late = moved_at({"interval_s": 1.0, "metrics_age_s": 6.0, "publish_s": 4.0})
    assert 60.0 < prompt < 80.0
    assert 8.0 <= late - prompt <= 13.0


def test_a_burst_delays_a_share_of_the_jobs(make):
    delay = {"share": 0.0, "max_s": 1.0, "burst_share": 0.5}
    outcome = simulate(
        make(
            [20, 20],
            latency_ms=10.0,
            retry={"delay": delay},
            duration_s=200.0,
            series_s=5.0,
            table="control",
            arrivals={"load": 0.3, "changes": [{"at_s": 100.0, "until_s": 120.0, "factor": 8.0, "regions": ["a"]}]},
        )
    )
    shares = results(outcome)["series"]["delay_share"]
    assert max(shares["a"][:20]) == 0.0
    assert max(shares["a"][20:26]) == 0.5
    assert outcome.last.delayed[0] > 10


@pytest.mark.parametrize("metrics", ["pages", "prometheus"])
@pytest.mark.parametrize("lost", [19, 25])
def test_a_region_that_loses_half_of_its_gpus_is_relieved_whichever_way_that_is_seen(make, metrics, lost):
    found = results(
        simulate(
            make(
                [40, 40, 40],
                latency_ms=10.0,
                duration_s=600.0,
                warm_up_s=300.0,
                table="control",
                control={"metrics": metrics},
                arrivals={"load": 0.3, "region_load": {"a": 0.7}},
                failures=[{"at_s": 100.0, "region": "a", "gpus": lost}],
            )
        )
    )
    # What is left is filled to three quarters, by its own users alone; the others have room for the rest.
    assert found["regions"]["a"]["in_region_share"] == pytest.approx(0.75 * (40 - lost) / (0.7 * 40), abs=0.04)
    assert found["failure_share"] < 0.001


@pytest.mark.parametrize("metrics", ["pages", "prometheus"])
def test_a_region_that_vanishes_is_down_since_it_answers_no_jobs(make, metrics):
    found = results(
        simulate(
            make(
                [40, 40, 40],
                latency_ms=10.0,
                duration_s=400.0,
                warm_up_s=200.0,
                table="control",
                control={"metrics": metrics},
                arrivals={"load": 0.4},
                failures=[{"at_s": 100.0, "region": "a", "vanishes": True}],
            )
        )
    )
    assert found["regions"]["a"]["in_region_share"] < 0.01
    assert found["failure_share"] < 0.001
