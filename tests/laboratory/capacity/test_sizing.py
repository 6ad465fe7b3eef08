from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laboratory.capacity.planning import Goal, Planning, Week
from laboratory.capacity.sizing import size
from laboratory.queueing import erlang_b, gpus_for
from routing.errors import InputError
from routing.fleet import Fleet
from routing.load import Load
from routing.planner import plan

NOW = datetime(2025, 1, 1, tzinfo=UTC)


def week_of(fleet, rps):
    array = np.array(rps, dtype=float)
    return Week(fleet.names, array, array.mean(axis=0), array, ())


def constant(fleet, *rps):
    return week_of(fleet, [rps] * 168)


def test_formulas_give_the_values_of_tables():
    # Erlang's own table and Kleinrock's examples: B(1, 1) = 1/2, B(10, 10) = 0.2146, C(2, 1) = 1/3.
    assert erlang_b(1, 1.0) == 0.5
    assert erlang_b(10, 10.0) == pytest.approx(0.21458, abs=1e-5)
    assert [round(erlang_b(12, 12 * load), 3) for load in (0.7, 0.9, 1.1)] == [0.063, 0.151, 0.245]
    assert 0 < erlang_b(50_000, 49_000.0) < 1e-3  # no overflow
    assert erlang_b(0, 0.0) == 1.0


@given(st.floats(0.01, 5000), st.floats(1e-6, 0.5))
def test_gpus_for_a_goal_are_the_fewest(offered, goal):
    gpus = gpus_for(offered, goal)
    assert erlang_b(gpus, offered) <= goal
    assert erlang_b(gpus - 1, offered) > goal


def test_without_loss_a_region_has_what_blocking_and_heat_ask_for(fleet):
    planning = Planning(goal=Goal(lose_a_region=False), margin=0.1)
    found = size(fleet, constant(fleet, 3.0, 75.0, 0.0), planning, 1.0)
    assert found.alone.tolist() == [gpus_for(3.0, 0.01), 100, 0]
    assert found.gpus.tolist() == [9, 110, 0]


def test_with_loss_the_rest_carries_any_region(fleet):
    found = size(fleet, constant(fleet, 60.0, 30.0, 30.0), Planning(), 1.0)
    for lost in range(3):
        check_carried(fleet, found.with_loss, [60.0, 30.0, 30.0], lost, 1.0)
    # 60 + 30 + 30 on what is left at 75 %: at least 160 without any one region.
    assert found.with_loss.sum() - found.with_loss.max() >= 160
    assert found.loss_load.max() <= 0.75 + 1e-9


def check_carried(fleet, gpus, rps, lost, service_s):
    capacity = [0.0 if i == lost else count / service_s for i, count in enumerate(gpus.tolist())]
    load = Load(
        demand_rps=dict(zip(fleet.names, map(float, rps), strict=True)),
        capacity_rps=dict(zip(fleet.names, capacity, strict=True)),
    )
    table = plan(fleet, load, generated_at=NOW)
    assert sum(table.unserved_rps.values()) <= 1e-5 * max(1.0, sum(rps))


@given(
    st.lists(st.floats(0.0, 80.0), min_size=9, max_size=9).filter(lambda rps: max(rps) > 1),
    st.sampled_from([0.3, 2.5]),
    st.lists(st.sampled_from([10.0, 25.0, 60.0]), min_size=3, max_size=3),
)
@settings(max_examples=30)
def test_each_loss_at_each_hour_is_carried(rps, service_s, ways):
    fleet = Fleet.model_validate(
        {
            "regions": {name: {"gpus": 1} for name in "abc"},
            "latency_ms": {"a": {"b": ways[0], "c": ways[1]}, "b": {"c": ways[2]}},
            "service_time_s": service_s,
            "rings_ms": [20.0, 100.0],
            "thresholds": [{"load": 0.7, "ring": 1}, {"load": 0.9, "ring": 2}],
            "target_load": 0.7,
        }
    )
    hours = [rps[3 * i : 3 * i + 3] for i in range(3)]
    found = size(fleet, week_of(fleet, hours), Planning(), service_s)
    assert (found.with_loss >= found.alone).all()
    assert (found.gpus >= found.with_loss).all()
    for hour in hours:
        for lost in range(3):
            check_carried(fleet, found.with_loss, hour, lost, service_s)
    blocking = [erlang_b(int(c), load * c) for c, load in zip(found.with_loss, found.loss_load, strict=True) if c]
    assert max(blocking) <= 0.05 + 1e-9


def test_peaks_at_other_hours_carry_each_other(fleet):
    together = size(fleet, week_of(fleet, [[60, 60, 60], [10, 10, 10]]), Planning(), 1.0)
    apart = size(fleet, week_of(fleet, [[60, 10, 10], [10, 60, 10], [10, 10, 60]]), Planning(), 1.0)
    assert apart.alone.tolist() == together.alone.tolist()
    assert apart.gpus.sum() < together.gpus.sum()


def test_gpus_are_added_where_they_are_cheap(fleet):
    dear = {"prices": {"regions": {"b": 50.0}}, "margin": 0.0}
    found = size(fleet, constant(fleet, 60.0, 30.0, 30.0), Planning.model_validate(dear), 1.0)
    assert found.with_loss[1] == found.alone[1]


def test_a_region_that_no_other_can_carry_is_an_error(fleet):
    far = fleet.model_copy(update={"thresholds": fleet.thresholds[:1]})  # ring 1 only: c is alone
    with pytest.raises(InputError, match="goal: no region is in a ring of c that overflow may use"):
        size(far, constant(far, 10.0, 10.0, 10.0), Planning(), 1.0)
    assert size(far, constant(far, 10.0, 10.0, 0.0), Planning(), 1.0).gpus[2] == 0
