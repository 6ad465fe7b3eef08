"""GPU servers that come and go: the rule is Kubernetes', nobody loses a job by it, and it is paid for."""

from pathlib import Path

import pytest
import yaml

from laboratory.simulate.results import results
from laboratory.simulate.run import simulate
from laboratory.simulate.scaling import Autoscaler
from laboratory.simulate.scenario import Scaling, Scenario
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


def test_failures_of_servers_cannot_be_tried_with_scaling():
    content = {"name": "x", "duration_s": 100.0, "arrivals": {}, "scaling": {}}
    with pytest.raises(InputError, match="failures: of GPUs cannot be tried with scaling"):
        validated(Scenario, content | {"failures": [{"at_s": 10.0, "region": "a"}]})
