"""Arrivals: they have the rate that a scenario wants, and follow from the seed alone."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.simulate.scenario import TRACE_COLUMNS, Change, Day, load_experiment
from loadtests.arrivals import even, part, schedule, thinned, write_trace
from loadtests.demand import Rate

changes = st.lists(
    st.builds(
        lambda at, length, factor: Change(at_s=at, until_s=at + length, factor=factor),
        st.floats(0, 80),
        st.floats(5, 40),
        st.floats(0, 4),
    ),
    max_size=3,
).map(tuple)
days = st.none() | st.builds(Day, peak_hour=st.floats(0, 23), trough=st.floats(0, 1))
rates = st.builds(
    Rate,
    base=st.floats(1, 60),
    changes=changes,
    day=days,
    day_s=st.floats(50, 200),
    utc_offset=st.floats(-12, 12),
    duration_s=st.just(100.0),
)


def wanted(rate, begin, end):
    """Arrivals that a rate makes between two times."""
    times = np.linspace(begin, end, 2001)
    return float(rate.at((times[:-1] + times[1:]) / 2).mean() * (end - begin))


@given(rates, st.integers(0, 2**31))
def test_arrivals_have_the_wanted_rate_at_each_time(rate, seed):
    times = thinned(rate, 100.0, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < 100.0))
    for begin in range(0, 100, 25):
        expected = wanted(rate, begin, begin + 25)
        count = int(((times >= begin) & (times < begin + 25)).sum())
        # A Poisson count stays within six standard deviations, and the edges of changes are known to 0.05 s.
        assert abs(count - expected) <= 6 * math.sqrt(expected + 1) + 0.02 * expected


@given(rates, st.floats(0, 1, exclude_max=True))
def test_even_arrivals_follow_the_integral_of_the_rate(rate, start):
    times = even(rate, 100.0, start)
    for end in (10.0, 33.0, 71.0, 100.0):
        count = int((times < end).sum())
        assert abs(count - wanted(rate, 0.0, end)) <= 2 + 0.02 * wanted(rate, 0.0, end)


def test_gaps_of_a_constant_rate_are_exponential():
    gaps = np.diff(thinned(Rate(50.0, (), None, 1.0, 0.0, 400.0), 400.0, np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)


def constant(base):
    return Rate(base, (), None, 1.0, 0.0, 30.0)


@given(st.integers(0, 1000), st.integers(1, 7))
def test_parts_of_workers_are_all_arrivals_once_and_of_one_load(seed, workers):
    arrivals = schedule({"a": constant(9.0), "b": constant(4.0)}, {"b": [5.0] * 8}, 30.0, seed)
    parts = [part(arrivals, number, workers) for number in range(workers)]
    assert sorted(one for found in parts for one in found) == arrivals
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for found in parts:
        assert all(one.at_s <= other.at_s for one, other in pairwise(found))


def test_a_seed_gives_the_same_arrivals_and_another_gives_others():
    found = [schedule({"a": constant(9.0)}, {}, 30.0, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_region_keeps_its_arrivals_when_another_gets_hotter():
    def of_a(rps_of_b):
        found = schedule({"a": constant(9.0), "b": constant(rps_of_b)}, {}, 30.0, 5)
        return [one for one in found if one.region == "a"]

    assert of_a(1.0) == of_a(20.0)


def test_a_herd_is_there_at_its_moment_besides_the_rest():
    found = schedule({"a": constant(0.0)}, {"a": [3.0] * 12 + [99.0]}, 30.0, 1)
    assert [one.at_s for one in found] == [3.0] * 12


def test_the_trace_is_one_that_the_simulator_reads(tmp_path):
    arrivals = schedule({"us-east": constant(4.0)}, {}, 30.0, 1)
    path = tmp_path / "arrivals.csv"
    write_trace(arrivals, path)
    assert path.read_text().splitlines()[0] == ",".join(TRACE_COLUMNS)
    examples = Path(__file__).resolve().parents[2] / "docs" / "examples"
    experiment = load_experiment(
        examples / "scenarios" / "steady.yaml", fleet=examples / "small-fleet.yaml", trace=path
    )
    assert [(round(at, 6), region) for at, region in experiment.trace] == [
        (round(one.at_s, 6), one.region) for one in arrivals
    ]
