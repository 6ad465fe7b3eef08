import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.control.state import Estimate

TAU_S = 20.0
seconds = st.floats(0.1, 100.0)
values = st.floats(0.0, 1e6)


def follow(measurements, tau_s=TAU_S):
    (first_s, first), *rest = measurements
    estimate = Estimate.first(first, first_s, first_s, tau_s)
    for passed, value in rest:
        estimate = estimate.followed(value, estimate.at + passed, passed, tau_s)
    return estimate


@given(st.lists(st.tuples(seconds, values), min_size=1))
def test_an_estimate_stays_among_what_was_measured(measurements):
    found = [value for _, value in measurements]
    estimate = follow(measurements)
    assert min(found) - 1e-6 <= estimate.value <= max(found) + 1e-6
    assert 0 < estimate.weight <= 1


@given(st.lists(st.tuples(seconds, values), min_size=2), st.integers(0, 100), st.floats(0.05, 0.95))
def test_one_measurement_counts_as_much_as_two_that_share_its_time(measurements, at, part):
    index = at % len(measurements)
    passed, value = measurements[index]
    if index == 0:
        return  # how the first is split is its own affair: it has no distance to one before
    split = [*measurements[:index], (passed * part, value), (passed * (1 - part), value), *measurements[index + 1 :]]
    whole, parts = follow(measurements), follow(split)
    assert parts.value == pytest.approx(whole.value, rel=1e-6, abs=1e-6)
    assert parts.weight == pytest.approx(whole.weight)


@given(values, values, st.lists(seconds, min_size=1))
def test_after_a_step_the_distance_shrinks_with_the_time_constant_whatever_the_intervals(before, after, intervals):
    estimate = Estimate(before, 0.0, 1.0)
    for passed in intervals:
        estimate = estimate.followed(after, estimate.at + passed, passed, TAU_S)
    expected = after + (before - after) * math.exp(-sum(intervals) / TAU_S)
    assert estimate.value == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_the_first_measurements_count_alike():
    assert follow([(2.0, 10.0), (2.0, 0.0)]).value == pytest.approx(4.75, abs=0.01)
    assert follow([(2.0, 12.0), (2.0, 0.0), (2.0, 0.0)]).value == pytest.approx(3.6, abs=0.05)


def test_what_was_known_fades_while_nothing_is_measured():
    known = Estimate(10.0, 0.0, 1.0)
    soon, late = (known.followed(0.0, at, 2.0, TAU_S) for at in (2.0, 100.0))
    assert soon.value > 9
    assert late.value < 1
    assert late.weight < 0.2


def test_a_clock_that_goes_back_changes_nothing():
    known = Estimate(10.0, 50.0, 1.0)
    assert known.followed(0.0, 49.0, 2.0, TAU_S) == known
    assert known.followed(0.0, 51.0, 0.0, TAU_S) == known


@given(st.lists(st.tuples(seconds, values), min_size=1))
def test_what_falls_counts_at_once_and_what_rises_slowly(measurements):
    estimate = Estimate(measurements[0][1], 0.0, 1.0)
    for passed, value in measurements:
        before = estimate
        estimate = before.rising_slowly(value, before.at + passed, TAU_S)
        if value <= before.value:
            assert estimate.value == pytest.approx(value, rel=1e-12)
        else:
            assert estimate.value == pytest.approx(value - (value - before.value) * math.exp(-passed / TAU_S))
