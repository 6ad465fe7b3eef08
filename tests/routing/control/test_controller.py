import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.control.controller import Controller
from routing.control.state import Orders, largest_change
from routing.metrics.observation import Observation, RegionSeen

TAU_S = 20.0


def check(fluid):
    """What holds in every round, whatever happens."""
    before = fluid.controller.at_home().shares
    for decision, rows in zip(fluid.decisions, fluid.history, strict=True):
        assert rows == decision.rows
        for source, row in rows.items():
            assert sum(row.values()) == pytest.approx(1.0, abs=1e-9)
            assert largest_change(before[source], row) <= fluid.controller.fleet.max_step + 1e-9
            if source in decision.held:
                assert row == before[source]
        if decision.frozen:
            assert rows == before
        before = rows


def test_at_rest_nothing_changes(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(200)
    check(fleet)
    assert fleet.changed() == 0
    assert fleet.home("a")[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("gpus", [(4, 4, 4), (40, 40, 40)])
@pytest.mark.parametrize("interval_s", [1.0, 2.0, 5.0])
def test_a_step_in_demand_is_followed_one_way_without_overshoot(fluid, gpus, interval_s):
    fleet = fluid(gpus, (0.5, 0.4, 0.4))
    fleet.interval_s = interval_s
    fleet.run(60)
    fleet.demand["a"] *= 2.1  # to 105 % of its capacity
    begin = len(fleet.history)
    fleet.run(300)
    check(fleet)
    home = fleet.home("a")[begin:]
    assert home == sorted(home, reverse=True)
    planned = fleet.controller.planner(fleet.fleet, fleet.controller.load(fleet.state)).share("a", "a")
    assert planned - 1e-9 <= home[-1] <= planned + fleet.fleet.hysteresis
    settled = math.ceil(10 * TAU_S / interval_s)
    assert len(set(home[settled:])) == 1
    assert 3 <= fleet.changed() <= 20


@pytest.mark.parametrize("gpus", [(4, 4, 4), (40, 40, 40), (120, 60, 80)])
@pytest.mark.parametrize("interval_s", [1.0, 2.0, 5.0])
def test_a_step_to_far_above_capacity_settles_without_oscillation(fluid, gpus, interval_s):
    fleet = fluid(gpus, (0.5, 0.4, 0.4))
    fleet.interval_s = interval_s
    fleet.run(60)
    plans = []
    for part in range(101):  # what is planned on the way: near regions fill up, and then farther ones
        state = fluid(gpus, (0.5 + part / 100, 0.4, 0.4)).run(2).state
        plans.append(fleet.controller.planner(fleet.fleet, fleet.controller.load(state)).share("a", "a"))
    fleet.demand["a"] *= 3  # to 150 %
    begin = len(fleet.history)
    fleet.run(300)
    check(fleet)
    home = fleet.home("a")[begin:]
    hysteresis = fleet.fleet.hysteresis
    assert min(home) >= min(plans) - hysteresis
    way = sum(abs(after - before) for before, after in pairwise(home))
    planned_way = sum(abs(after - before) for before, after in pairwise(plans))
    assert way <= planned_way + 2 * hysteresis
    settled = math.ceil(10 * TAU_S / interval_s)
    assert len(set(home[settled:])) == 1
    assert 3 <= fleet.changed() <= 25
    for name in "bc":
        assert fleet.arriving(name) <= (0.75 + hysteresis) * fleet.fleet.capacity_rps(name)
        assert fleet.load[name] == pytest.approx(fleet.arriving(name) / fleet.fleet.capacity_rps(name), rel=0.01)


@pytest.mark.parametrize("spike_s", [10, 60, 200])
def test_after_a_spike_all_traffic_comes_home(fluid, spike_s):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.demand["a"] *= 3
    fleet.run(spike_s)
    fleet.demand["a"] /= 3
    before = fleet.changed()
    fleet.run(200)
    check(fleet)
    assert fleet.home("a")[-1] == pytest.approx(1.0)
    assert fleet.changed() - before <= 20
    coming = fleet.home("a")[-90:]
    assert coming == sorted(coming)


def test_nearer_regions_take_the_overflow_first_and_give_it_back_last(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.demand["a"] *= 1.8  # to 90 %
    fleet.run(200)
    row = fleet.state.rows["a"]
    assert row["b"] > 0.1
    assert row.get("c", 0.0) == 0.0


def test_demand_that_falls_out_of_step_with_the_rounds_is_followed_alike(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.demand["a"] *= 3
    rng = random.Random(3)

    def irregular(_):
        fleet.interval_s = rng.choice((0.2, 1.0, 2.0, 9.0))

    fleet.run(300, irregular)
    check(fleet)
    regular = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(300)
    assert largest_change(fleet.state.rows["a"], regular.state.rows["a"]) <= fleet.fleet.hysteresis + 0.015


def test_a_region_that_flaps_is_left_and_does_not_drag_the_table_along(fluid):
    fleet = fluid((40, 40, 40), (1.2, 0.4, 0.4)).run(120)
    steady = fleet.state.rows["a"]
    assert steady["b"] > 0.2

    def flap(t):
        fleet.ready["b"] = 40 if int(t / 10) % 2 else 0

    begin = len(fleet.history)
    fleet.run(600, flap)
    check(fleet)
    to_b = [rows["a"].get("b", 0.0) for rows in fleet.history[begin + 30 :]]
    # Up for 10 s of 20: it is trusted with at most 1 - exp(-10/20) of its capacity, and is empty again soon.
    assert max(to_b) - min(to_b) <= 0.2
    fleet.ready["b"] = 40
    fleet.run(200)
    check(fleet)
    assert largest_change(fleet.state.rows["a"], steady) <= 2 * fleet.fleet.hysteresis


def test_a_region_that_dies_is_relieved_at_once_and_gets_its_traffic_back(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.ready["a"] = 0
    fleet.run(12)
    assert fleet.home("a")[-1] < 0.5  # five steps of 0.2 at most; the edge itself turns away from the dead
    fleet.run(100)
    check(fleet)
    assert fleet.arriving("b") <= 0.78 * fleet.fleet.capacity_rps("b")
    fleet.ready["a"] = 40
    fleet.run(200)
    assert fleet.home("a")[-1] == pytest.approx(1.0)


def test_when_all_regions_are_hot_everyone_stays_at_home(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    for name in "abc":
        fleet.demand[name] = 1.3 * fleet.fleet.capacity_rps(name)
    fleet.run(300)
    check(fleet)
    for name in "abc":
        assert fleet.home(name)[-1] > 0.9
    assert fleet.changed() <= 20
    last = fleet.history[-20:]
    assert all(rows == last[0] for rows in last)


def test_metrics_that_stop_freeze_the_table_and_it_goes_on_when_they_are_back(fluid):
    fleet = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(200)
    known = fleet.state.rows
    fleet.silent = set("abc")
    fleet.demand["a"] = 10.0
    fleet.run(14)
    assert not fleet.decisions[-1].frozen
    fleet.run(10)
    assert fleet.decisions[-1].frozen == "3 of 3 regions not heard of for 15 s"
    assert fleet.decisions[-1].stale == ("a", "b", "c")
    fleet.run(600)
    assert fleet.state.rows == known
    fleet.silent = set()
    fleet.run(200)
    check(fleet)
    assert not fleet.decisions[-1].frozen
    assert fleet.home("a")[-1] == pytest.approx(1.0)


def test_one_region_that_is_not_heard_of_keeps_its_row_and_the_others_are_planned_around_it(fluid):
    fleet = fluid((40, 40, 40), (1.2, 0.4, 0.4)).run(200)
    fleet.silent = {"a"}
    fleet.run(20)
    known = fleet.state.rows["a"]
    assert known["b"] > 0.2
    fleet.demand["b"] *= 1.75  # to 70 %, which with what comes from a is too much
    fleet.run(200)
    check(fleet)
    assert fleet.state.rows["a"] == known
    assert fleet.decisions[-1].held["a"].kind == "stale"
    assert not fleet.decisions[-1].frozen
    assert fleet.home("b")[-1] < 0.9
    assert fleet.arriving("c") <= 0.78 * fleet.fleet.capacity_rps("c")
    # Its capacity may be gone for all anybody knows, so that it gets no more than it had.
    assert fleet.state.rows["b"].get("a", 0.0) <= 1e-9


def test_half_of_the_regions_not_heard_of_freeze_the_whole_table(fluid):
    fleet = fluid((40, 40, 40, 40), (1.2, 0.4, 0.4, 0.4)).run(200)
    fleet.silent = {"b", "c"}
    fleet.run(20)
    known = fleet.state.rows
    fleet.demand["a"] = 1.0
    fleet.run(100)
    assert fleet.decisions[-1].frozen
    assert fleet.state.rows == known


def test_a_loop_that_starts_looks_for_a_while_before_it_acts(fluid):
    fleet = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(8)
    assert fleet.changed() == 0
    assert {held.kind for held in fleet.decisions[-1].held.values()} == {"warming_up"}
    fleet.run(10)
    assert fleet.changed() > 0


def test_a_region_whose_edges_are_gone_keeps_its_row_and_needs_no_room(fluid):
    fleet = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(200)
    known, controller = fleet.state.rows["a"], fleet.controller
    state, now = fleet.state, fleet.now
    for _ in range(60):
        now += 2
        seen = {n: RegionSeen(demand_rps=32.0, over_s=2.0, capacity_rps=80.0, gpus_ready=40) for n in "bc"}
        seen["a"] = RegionSeen(demand_rps=0.0, capacity_rps=80.0, gpus_ready=40, edge_gone=True)
        state, decision = controller.step(state, Observation(seen), now)
    assert state.rows["a"] == known
    assert decision.held["a"].kind == "edge_gone"
    assert controller.load(state).demand_rps["a"] < 1.0


def test_a_burst_raises_the_delay_of_its_region_and_lowers_it_again(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.demand["a"] = 300.0
    fleet.run(2)
    assert fleet.decisions[-1].delays == {"a": 0.2, "b": 0.0, "c": 0.0}
    fleet.demand["a"] = 40.0
    fleet.run(18)
    assert fleet.decisions[-1].delays["a"] == 0.2
    fleet.run(10)
    assert fleet.decisions[-1].delays == {"a": 0.0, "b": 0.0, "c": 0.0}
    raised = [decision.delays["a"] for decision in fleet.decisions]
    assert sum(one != two for one, two in pairwise(raised)) == 2


def poisson(seed):
    rng = np.random.default_rng(seed)
    return lambda mean: float(rng.poisson(mean))


@pytest.mark.parametrize("gpus", [(12, 12, 12), (40, 40, 40), (120, 80, 100)])
def test_poisson_arrivals_leave_a_table_that_need_not_change_alone(fluid, gpus):
    fleet = fluid(gpus, (0.6, 0.4, 0.4))
    fleet.noise = poisson(1)
    fleet.run(900)
    check(fleet)
    assert fleet.changed() == 0
    assert all(set(decision.delays.values()) == {0.0} for decision in fleet.decisions)


# A little above what docs/control-loop.md has from three seeds.
@pytest.mark.parametrize(
    ("gpus", "wander", "tables"),
    [((4, 4, 4), 0.025, 115), ((12, 12, 12), 0.016, 60), ((40, 40, 40), 0.011, 20), ((120, 80, 100), 0.006, 10)],
)
def test_poisson_arrivals_are_followed_within_what_they_make_of_the_estimate(fluid, gpus, wander, tables):
    fleet = fluid(gpus, (1.2, 0.4, 0.4))
    fleet.noise = poisson(2)
    fleet.run(800)
    check(fleet)
    home = fleet.home("a")[100:]
    assert np.std(home) <= wander
    assert sum(bool(decision.changes) for decision in fleet.decisions[100:]) <= tables
    assert all(set(decision.delays.values()) == {0.0} for decision in fleet.decisions)


def test_a_clock_that_goes_back_all_the_same_breaks_nothing(fluid):
    fleet = fluid((40, 40, 40), (1.5, 0.4, 0.4)).run(100)
    fleet.now -= 50
    fleet.run(200)
    check(fleet)
    assert fleet.home("a")[-1] < 0.7


def test_a_drained_region_is_emptied_in_steps_and_filled_again(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.2, 0.2)).run(60)
    fleet.orders = Orders(drained=frozenset({"a"}))
    fleet.run(60)
    check(fleet)
    assert all(row.get("a", 0.0) < 1e-9 for row in fleet.state.rows.values())
    fleet.orders = Orders()
    fleet.run(200)
    check(fleet)
    assert fleet.home("a")[-1] == pytest.approx(1.0)


def test_even_a_trickle_leaves_a_drained_region(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4))
    fleet.state = fleet.controller.start({**fleet.state.rows, "a": {"a": 0.99, "b": 0.01}})
    fleet.run(20)
    assert fleet.state.rows["a"]["b"] == 0.01  # below the hysteresis
    fleet.orders = Orders(drained=frozenset({"b"}))
    fleet.run(60)
    assert fleet.state.rows["a"].get("b", 0.0) < 1e-9


def test_a_table_that_an_operator_has_frozen_stays_and_demand_is_learnt_meanwhile(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(60)
    fleet.orders = Orders(frozen="frozen by an operator")
    fleet.demand["a"] *= 3
    before = fleet.changed()
    fleet.run(200)
    assert fleet.changed() == before
    assert (fleet.decisions[-1].frozen, fleet.decisions[-1].by_operator) == ("frozen by an operator", True)
    assert fleet.state.regions["a"].demand.value == pytest.approx(120.0, rel=0.01)
    fleet.orders = Orders()
    fleet.run(60)
    check(fleet)
    assert fleet.home("a")[-1] < 0.7


def test_measured_round_trips_decide_which_region_is_nearest(fluid):
    fleet = fluid((40, 40, 40), (1.0, 0.4, 0.4))
    fleet.orders = Orders(latency_ms={"a": {"b": 90.0, "c": 10.0}})
    fleet.run(200)
    assert fleet.state.rows["a"]["c"] > 0.1
    assert fleet.state.rows["a"].get("b", 0.0) < 1e-9


def test_a_loop_warms_up_once(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4)).run(6)
    assert fleet.decisions[-1].warming == ("a", "b", "c")
    assert not fleet.state.warm
    fleet.run(10)
    assert (fleet.decisions[-1].warming, fleet.state.warm) == ((), True)
    fleet.silent = {"b"}
    fleet.run(200)
    fleet.silent = set()
    fleet.run(2)
    assert fleet.decisions[-1].warming == ()


def test_a_loop_without_metrics_never_warms_up(fluid):
    fleet = fluid((40, 40, 40), (0.5, 0.4, 0.4))
    fleet.silent = set("abc")
    fleet.run(100)
    assert not fleet.state.warm


observed = st.one_of(
    st.none(),
    st.builds(
        RegionSeen,
        demand_rps=st.one_of(st.none(), st.floats(0, 1e5)),
        over_s=st.floats(0, 100),
        retries_rps=st.one_of(st.none(), st.floats(0, 1e5)),
        capacity_rps=st.one_of(st.none(), st.floats(0, 1e4)),
        gpus_ready=st.one_of(st.none(), st.integers(0, 40)),
        edge_gone=st.booleans(),
    ),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 60), st.lists(observed, min_size=3, max_size=3)), max_size=25))
def test_whatever_is_observed_rows_sum_to_1_and_no_share_moves_more_than_a_step(make_fleet, rounds):
    controller = Controller(make_fleet(4, 8, 12))
    state, now = controller.start(controller.at_home().shares), 0.0
    for passed, seen in rounds:
        now += passed
        found = {name: one for name, one in zip("abc", seen, strict=True) if one is not None}
        before = state
        state, decision = controller.step(state, Observation(found), now)
        assert state.rows == decision.rows
        for source, row in state.rows.items():
            assert sum(row.values()) == pytest.approx(1.0, abs=1e-9)
            assert largest_change(before.rows[source], row) <= controller.fleet.max_step + 1e-9
        assert controller.step(before, Observation(found), now) == (state, decision)  # a pure function
