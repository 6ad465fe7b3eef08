"""Histograms and tallies: what workers send adds up to what one process would have counted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.arrivals import Outcome
from laboratory.local.client import quantile
from loadtests.histogram import PRECISION, Histogram
from loadtests.tally import Tally

values = st.lists(st.floats(0.0005, 1000.0), min_size=1, max_size=200)


def filled(found):
    histogram = Histogram()
    for one in found:
        histogram.add(one)
    return histogram


@given(values, st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_those_of_the_values_to_one_part_in_a_hundred(found, share):
    exact = quantile(sorted(found), share)
    assert filled(found).quantile(share) == pytest.approx(exact, rel=1.1 * PRECISION)


@given(values, st.integers(1, 5))
def test_percentiles_of_several_workers_are_those_of_all_their_values(found, workers):
    parts = [filled(found[number::workers]) for number in range(workers)]
    # As messages have them: keys of JSON are text.
    parts = [Histogram(json.loads(json.dumps(one.to_dict()))) for one in parts]
    merged = Histogram.sum(parts)
    whole = filled(found)
    assert merged.counts == whole.counts
    assert merged.quantile(0.99) == whole.quantile(0.99)


def test_the_mean_of_percentiles_would_be_another():
    # What merging has to get right: one worker that waits, one that does not.
    fast, slow = filled([0.1] * 900), filled([2.0] * 100)
    assert Histogram.sum([fast, slow]).quantile(0.95) == pytest.approx(2.0, rel=0.02)
    assert (fast.quantile(0.95) + slow.quantile(0.95)) / 2 == pytest.approx(1.05, rel=0.02)


@given(values, st.floats(0.001, 1000.0))
def test_above_a_limit_is_what_is_clearly_above_it(found, limit):
    above = filled(found).above(limit)
    assert sum(one > limit * 1.03 for one in found) <= above <= sum(one > limit * 0.97 for one in found)


def test_nothing_and_less_than_nothing_are_zero():
    assert Histogram().quantile(0.5) == 0
    assert Histogram().mean == 0
    assert filled([-1.0, 0.0]).quantile(1.0) == 0


regions = st.sampled_from(["a", "b"])
outcomes = st.builds(
    Outcome,
    region=regions,
    at_s=st.floats(0, 30),
    late_s=st.floats(0, 0.3),
    latency_s=st.floats(0.01, 9),
    status=st.sampled_from([0, 200, 429, 502]),
    served_by=regions,
    attempts=st.integers(0, 20),
    compute_s=st.none() | st.floats(0.1, 1.0),
    away_s=st.just(0.01),
    problem=st.sampled_from(["", "", "timed out"]),
)


def counted(found, bin_s=1.0):
    tally = Tally(bin_s, 0.5)
    for one in found:
        tally.arrived(one.at_s, one.region)
        tally.add(one, 0.1)
    return tally


def content(tally):
    """Of a tally, in an order that does not depend on how it came to be."""
    cells = {
        key: (one.count, one.busy, one.attempts, one.latency.counts, one.wait.counts)
        for key, one in tally.cells.items()
    }
    return cells, tally.due, tally.statuses, tally.problems, tally.late, tally.dropped, tally.most_late_s


@given(st.lists(outcomes, max_size=60), st.integers(1, 4), st.integers(1, 20))
def test_reports_of_workers_add_up_whenever_they_are_sent(found, workers, every):
    master = Tally(1.0, 0.5)
    for number in range(workers):
        own = found[number::workers]
        worker = Tally(1.0, 0.5)
        for i, one in enumerate(own):
            worker.arrived(one.at_s, one.region)
            worker.add(one, 0.1)
            if i % every == 0:
                master.put(json.loads(json.dumps(worker.take())))
        master.put(json.loads(json.dumps(worker.take())))
        assert worker.requests == worker.arrivals == 0
    assert content(master) == content(counted(found))
    assert master.requests == len(found)


def test_a_window_has_whole_bins_only():
    tally = counted([Outcome("a", at, 0.0, 0.5, 200, "a", 1) for at in (0.5, 9.9, 10.0, 19.9, 20.0)])
    assert tally.select(10.0, 20.0).count == 2
    assert tally.select(9.5, 20.5).count == 2
    assert tally.select().count == 5
    assert tally.demand(0.0, 10.0) == {"a": 2}


def test_what_is_waited_for_is_neither_computing_nor_the_way():
    tally = counted([Outcome("a", 1.0, 0.0, 1.55, 200, "b", 3, 0.5, 0.05), Outcome("a", 1.0, 0.0, 0.5, 200, "a", 1)])
    cell = tally.select(served=lambda _, to: to == "b")
    assert cell.wait.quantile(0.5) == pytest.approx(1.0, rel=0.02)
    # Without a word of the GPU server it is the fleet's own time.
    assert tally.select(served=lambda _, to: to == "a").wait.quantile(0.5) == 0


def test_an_animation_with_a_problem_is_none():
    tally = counted([Outcome("a", 1.0, 0.0, 0.5, 200, "a", 1, problem="not stillmotion")])
    assert tally.select(served=lambda _, to: bool(to)).count == 0
    assert tally.problems == {"not stillmotion": 1}
