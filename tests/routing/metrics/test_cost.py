import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.metrics.proxies import Counters
from routing.metrics.regions import Costs


def make(**more):
    return Costs(("a", "b"), 2.0, **more)


def test_before_anything_is_measured_the_cost_is_the_service_time():
    costs = make()
    assert costs.cost_s("a") == costs.cost_s("b") == 2.0


def test_the_prior_counts_as_much_as_its_number_of_requests():
    costs = Costs(("a",), 2.0, prior_requests=20)
    costs.add("a", 20 * 3.0, 20)
    fleet_s = (20 * 2.0 + 60.0) / (20 + 20)
    assert costs.cost_s("a") == pytest.approx((20 * fleet_s + 60.0) / 40)


def test_an_idle_region_costs_what_was_measured_elsewhere():
    costs = make()
    for _ in range(100):
        costs.add("a", 30.0, 10)
    assert costs.cost_s("a") == pytest.approx(3.0, rel=0.02)
    assert costs.cost_s("b") == pytest.approx(3.0, rel=0.03)


def test_a_change_of_the_model_is_learnt_in_its_time():
    costs = make(memory_s=100.0)
    for cost_s, seconds in ((2.0, 1000), (1.0, 300)):
        for _ in range(seconds // 2):
            costs.forget(2.0)
            costs.add("a", 10 * cost_s, 10)
    assert costs.cost_s("a") == pytest.approx(1.05, abs=0.05)


def test_few_requests_in_each_window_do_not_make_the_cost_come_out_low():
    # Poisson arrivals of 2 per second in windows of 2 s: plain least squares of busy time on requests gives
    # 20 % less than the truth, since its x is noisy.
    rng = random.Random(7)
    costs = make(memory_s=1e9)
    pairs = []
    for _ in range(3000):
        requests = sum(rng.random() < 0.02 for _ in range(200))
        busy_s = sum(rng.random() < 0.02 for _ in range(200)) * 3.0  # jobs overlap windows: nearly independent
        pairs.append((requests, busy_s))
        costs.add("a", busy_s, requests)
    plain = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
    assert plain < 2.5
    assert costs.cost_s("a") == pytest.approx(3.0, rel=0.04)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e4))))
def test_a_cost_stays_within_a_tenth_and_ten_times_the_service_time(works):
    costs = make()
    for region, busy_s, requests, seconds in works:
        costs.add(region, busy_s, requests)
        costs.forget(seconds)
        assert 0.2 <= costs.cost_s(region) <= 20.0


@given(st.lists(st.tuples(st.floats(0.06, 1e3), st.floats(0, 1e6)), min_size=1))
def test_growth_adds_up_to_what_the_counter_gained_whatever_the_intervals(steps):
    counters, at, value, gained, passed = Counters(), 0.0, 5.0, 0.0, 0.0
    assert counters.growth("x", at, value) is None
    for seconds, amount in steps:
        at, value = at + seconds, value + amount
        growth = counters.growth("x", at, value)
        gained, passed = gained + growth.amount, passed + growth.seconds
    assert gained == pytest.approx(value - 5.0, rel=1e-6, abs=1e-6)
    assert passed == pytest.approx(at)


@given(st.lists(st.tuples(st.floats(-10, 1e3), st.floats(0, 1e6))))
def test_growth_is_never_negative_and_never_over_no_time(readings):
    counters, at = Counters(), 0.0
    for seconds, value in readings:
        at += seconds  # a clock that goes back now and then
        growth = counters.growth("x", at, value)
        assert growth is None or (growth.amount >= 0 and growth.seconds > 0)


def test_a_reset_gives_no_growth_once_and_then_goes_on():
    counters = Counters()
    counters.growth("x", 0.0, 100.0)
    assert counters.fell("x", 3.0)
    assert counters.growth("x", 2.0, 3.0) is None
    assert counters.growth("x", 4.0, 5.0).amount == 2.0
