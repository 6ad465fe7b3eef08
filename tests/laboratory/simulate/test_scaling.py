"""GPU servers that come and go: the rule is Kubernetes', nobody loses a job by it, and it is paid for."""

from pathlib import Path

import pytest
import yaml

from laboratory.simulate.results import results
from laboratory.simulate.run import simulate
from laboratory.simulate.scaling import Autoscaler
from laboratory.simulate.scaling_settings import Scaling
from laboratory.simulate.scenario import Scenario
from routing.errors import InputError
from routing.schema import validated

ROOT = Path(__file__).resolve().parents[3]


def after(scaler, jobs, times):
    """Servers at these moments."""
    return [scaler.step(now, jobs) for now in times]


def test_the_rule_has_the_numbers_of_the_scaled_object():
    given = yaml.safe_load((ROOT / "deploy/kubernetes/base/scaling/scaled-object.yaml").read_text())["spec"]
    rule, (trigger,) = Scaling(), given["triggers"]
    assert given["pollingInterval"] == rule.look_s
    assert float(trigger["metadata"]["threshold"]) == rule.busy_share
    assert f"[{rule.mean_s / 60:g}m]" in trigger["metadata"]["query"]
    up, down = (given["advanced"]["horizontalPodAutoscalerConfig"]["behavior"][way] for way in ("scaleUp", "scaleDown"))
    assert [(one["type"], one["value"], one["periodSeconds"]) for one in up["policies"]] == [
        ("Percent", 100 * rule.up_share, rule.up_s),
        ("Pods", rule.up_servers, rule.up_s),
    ]
    assert (up["stabilizationWindowSeconds"], up["selectPolicy"]) == (0, "Max")
    assert [(one["type"], one["value"], one["periodSeconds"]) for one in down["policies"]] == [
        ("Percent", 100 * rule.down_share, rule.down_s)
    ]
    assert down["stabilizationWindowSeconds"] == rule.settle_s


def test_servers_come_by_half_a_minute_and_go_by_a_tenth_after_a_quarter_of_an_hour():
    scaler = Autoscaler(Scaling(mean_s=1), least=4, most=100, replicas=20)
    found = after(scaler, 60.0, range(0, 241, 15))
    assert found[:5] == [30, 30, 30, 30, 45]  # half of what there was, each minute
    assert found[-1] == 100
    quiet = after(scaler, 6.0, range(255, 2000, 15))
    waits = 900 // 15 - 1
    assert quiet[:waits] == [100] * waits
    goes = quiet[waits : waits + 9]
    assert goes[0] == goes[7] == 90  # a tenth in two minutes
    assert goes[8] == 81


def test_a_wish_that_is_near_changes_nothing_and_bounds_hold():
    scaler = Autoscaler(Scaling(), least=4, most=30, replicas=20)
    assert set(after(scaler, 12.9, range(0, 3000, 15))) == {20}
    assert after(scaler, 1000.0, range(3000, 6000, 15))[-1] == 30
    assert after(scaler, 0.0, range(6000, 20000, 15))[-1] == 4


@pytest.fixture
def day(make):
    """Outcomes of a short day, with scaling or without."""

    def run(**scaling):
        experiment = make(
            (40, 40),
            duration_s=14_400.0,
            table="control",
            latency_ms=20.0,
            arrivals={"load": 0.6, "day": {"trough": 0.2, "length_s": 14_400.0, "utc_offset": {"a": 0, "b": 12}}},
            proxies={"queue": 60},
            **({"scaling": scaling} if scaling else {}),
        )
        return results(simulate(experiment))

    return run


def test_a_day_with_scaling_serves_all_for_less_and_each_job_has_one_end(day):
    fixed, scaled = day(), day(busy_share=0.6, start_s=60, settle_s=300)
    assert fixed["gpu_hours"] == {"a": 160.0, "b": 160.0, "total": 320.0, "of_fixed": 1.0}
    assert scaled["requests"] == fixed["requests"] == scaled["served"]
    assert scaled["failures"] == 0
    assert scaled["gpu_hours"]["of_fixed"] < 0.9
    assert scaled["gpu_hours"]["total"] == pytest.approx(scaled["gpu_hours"]["a"] + scaled["gpu_hours"]["b"], abs=0.01)
    servers = scaled["series"]["servers"]["a"]
    assert min(servers) < 20 < max(servers) <= 40


def test_servers_that_start_late_cost_the_neighbours_and_not_the_users(make):
    burst = {"load": 0.3, "changes": [{"at_s": 3600, "until_s": 5400, "factor": 2.5, "regions": ["a"]}]}

    def run(start_s):
        experiment = make(
            (40, 40), duration_s=7200.0, table="control", latency_ms=20.0, arrivals=burst,
            proxies={"queue": 60}, scaling={"start_s": start_s, "settle_s": 300},
        )  # fmt: skip
        return results(simulate(experiment))

    soon, late = run(30), run(900)
    assert soon["failures"] == late["failures"] == 0
    assert late["in_region_share"] < soon["in_region_share"]


def test_the_first_server_comes_by_demand_and_the_last_go_after_five_minutes_without():
    scaler = Autoscaler(Scaling(mean_s=1, settle_s=60), least=0, most=30, replicas=0)
    assert after(scaler, 0.0, range(0, 600, 15)) == [0] * 40  # a region without servers has no jobs
    found = [scaler.step(now, 0.0, demand=9.0) for now in range(600, 700, 15)]
    assert found[0] == 1  # KEDA's own step, and then the autoscaler's
    assert found[1:] == [5, 5, 5, 5, 9, 9]  # four more at once, and four in the next minute
    left = [scaler.step(now, 0.0, demand=0.2) for now in range(705, 1100, 15)]
    assert left[-1] == 0
    assert left.index(0) == (690 + 300 - 705) // 15


def test_a_region_that_sleeps_is_served_by_its_neighbours_until_its_own_servers_come(make):
    night = {"at_s": 0, "until_s": 5400}

    def run(**more):
        experiment = make(
            (40, 80), duration_s=10_800.0, table="control", latency_ms=20.0, proxies={"queue": 60},
            arrivals={"rps": {"a": 12.0, "b": 20.0}, "changes": [{**night, "factor": 0, "regions": ["a"]}]},
            scaling={"settle_s": 300, "start_s": 300, "region_least": more},
        )  # fmt: skip
        return results(simulate(experiment))

    kept, slept = run(a=4), run(a=0)
    assert slept["failures"] == kept["failures"] == 0
    servers = slept["series"]["servers"]["a"]
    assert min(servers) == 0
    assert servers[-1] >= 12
    assert slept["gpu_hours"]["a"] < kept["gpu_hours"]["a"]
    assert slept["in_region_share"] < 1  # while they started


def test_spot_servers_that_vanish_with_a_notice_cost_no_job_and_without_one_theirs(make):
    def run(notice_s=30.0, **more):
        experiment = make(
            (40, 40), duration_s=7200.0, table="control", latency_ms=20.0, proxies={"queue": 60},
            arrivals={"load": 0.4}, scaling={"least": 4, "settle_s": 300, "start_s": 120, "price": 2.0,
                     "spot": {"life_s": 3600, "notice_s": notice_s, "price": 0.3, **more}},
        )  # fmt: skip
        return results(simulate(experiment))

    warned, sudden = run(), run(notice_s=0.0)
    assert warned["failures"] == 0
    assert 10 < sudden["lost"] < 80  # some sixty vanish in two hours, and four in ten are busy
    # Each has its successor, so that users have their servers; and the bill is that of spot servers.
    hours = warned["gpu_hours"]["total"]
    assert warned["price"]["total"] == pytest.approx(2.0 * (16 + 0.3 * (hours - 16)), rel=0.01)
    assert warned["price"]["of_fixed"] < 0.4 * warned["gpu_hours"]["of_fixed"]
    taken = run(reclaims=[{"at_s": 3600, "until_s": 5400, "region": "a"}])
    servers = dict(zip(taken["series"]["time_s"], taken["series"]["servers"]["a"], strict=True))
    assert {count for time, count in servers.items() if 3700 < time < 5400} == {4}  # only those that are none
    # The neighbour has room for most, and starts what is missing.
    assert 0 < taken["failure_share"] < 0.001
    assert taken["in_region_share"] < warned["in_region_share"]


def test_a_price_is_the_fleets_where_the_scenario_has_none(make):
    regions = {"a": {"gpus": 4, "gpu_hour_price": 2.0}, "b": {"gpus": 4}}
    experiment = make((4, 4), duration_s=3600.0, arrivals={"load": 0.2}, fleet={"regions": regions})
    assert results(simulate(experiment))["price"] == {"total": 8.0, "of_fixed": 1.0}
    assert results(simulate(make((4, 4), duration_s=60.0, arrivals={"load": 0.2})))["price"] is None


def test_somebody_has_to_serve_those_who_sleep(make):
    with pytest.raises(InputError, match=r"scaling\.least: is 0 in each region"):
        make((4, 4), duration_s=100.0, scaling={"least": 0})
    with pytest.raises(InputError, match=r"scaling\.region_least: mars is none of the fleet's regions"):
        make((4, 4), duration_s=100.0, scaling={"region_least": {"mars": 0}})


def test_a_reclaim_of_no_region_is_named(make):
    spot = {"reclaims": [{"at_s": 1.0, "region": "mars"}]}
    with pytest.raises(InputError, match=r"scaling\.spot\.reclaims\.0\.region: mars is none"):
        make((4, 4), duration_s=100.0, scaling={"spot": spot})
    spot["reclaims"][0]["at_s"] = 200.0
    with pytest.raises(InputError, match=r"scaling\.spot\.reclaims\.0\.at_s: 200 is not before the end"):
        validated(Scenario, {"name": "x", "duration_s": 100.0, "arrivals": {}, "scaling": {"spot": spot}})


def test_failures_of_servers_cannot_be_tried_with_scaling():
    content = {"name": "x", "duration_s": 100.0, "arrivals": {}, "scaling": {}}
    with pytest.raises(InputError, match="failures: of GPUs cannot be tried with scaling"):
        validated(Scenario, content | {"failures": [{"at_s": 10.0, "region": "a"}]})
