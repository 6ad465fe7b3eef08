"""Arrivals: they have the rate that a scenario wants, and follow from the seed alone."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.arrivals import TRACE_COLUMNS, Rates, schedule, write_trace
from laboratory.simulate.demand import rates
from laboratory.simulate.scenario import Arrivals, Change, Day, load_experiment
from routing.fleet import Fleet
from routing.schema import validated

changes = st.lists(
    st.builds(
        lambda at, length, factor: Change(at_s=at, until_s=at + length, factor=factor),
        st.floats(0, 80),
        st.floats(5, 40),
        st.floats(0, 4),
    ),
    max_size=3,
).map(tuple)
days = st.none() | st.builds(
    Day, peak_hour=st.floats(0, 23), trough=st.floats(0, 1), length_s=st.floats(50, 200), utc_offset=st.just({"a": 3.0})
)
demands = st.builds(Arrivals, rps=st.fixed_dictionaries({"a": st.floats(1, 60)}), changes=changes, day=days)


def rate_of(demand):
    regions, rings = {"a": {"gpus": 1}}, {"rings_ms": [30], "thresholds": [{"load": 0.75, "ring": 1}]}
    fleet = validated(Fleet, {"regions": regions, "service_time_s": 1.0, "target_load": 0.75, **rings})
    return rates(demand, fleet, 100.0, 1.0)["a"]


def wanted(rate, begin, end):
    """Arrivals that a rate makes between two times."""
    times = np.linspace(begin, end, 2001)
    return float(np.mean([rate.at(time) for time in (times[:-1] + times[1:]) / 2]) * (end - begin))


@given(demands, st.integers(0, 2**31))
def test_arrivals_have_the_wanted_rate_at_each_time(demand, seed):
    rate = rate_of(demand)
    times = rate.arrivals(np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times <= 100.0))
    for begin in range(0, 100, 25):
        expected = wanted(rate, begin, begin + 25)
        count = int(((times >= begin) & (times < begin + 25)).sum())
        # A Poisson count stays within six standard deviations, and the edges of changes are known to 0.05 s.
        assert abs(count - expected) <= 6 * math.sqrt(expected + 1) + 0.02 * expected


@given(demands, st.integers(0, 2**31))
def test_even_arrivals_follow_the_integral_of_the_rate(demand, seed):
    rate = rate_of(demand)
    times = rate.arrivals(np.random.default_rng(seed), spaced=True)
    for end in (10.0, 33.0, 71.0, 100.0):
        count = int((times < end).sum())
        assert abs(count - wanted(rate, 0.0, end)) <= 2 + 0.02 * wanted(rate, 0.0, end)


def constant(base, seconds=30.0):
    return Rates(np.array([0.0, seconds]), np.array([base]))


def test_gaps_of_a_constant_rate_are_exponential():
    gaps = np.diff(constant(50.0, 400.0).arrivals(np.random.default_rng(1)))
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)


def test_a_seed_gives_the_same_arrivals_and_another_gives_others():
    found = [schedule({"a": constant(9.0)}, {}, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_region_keeps_its_arrivals_when_another_gets_hotter():
    def of_a(rps_of_b):
        found = schedule({"a": constant(9.0), "b": constant(rps_of_b)}, {}, 5)
        return [one for one in found if one.region == "a"]

    assert of_a(1.0) == of_a(20.0)


def test_a_herd_is_there_at_its_moment_besides_the_rest():
    found = schedule({"a": constant(0.0)}, {"a": [3.0] * 12}, 1)
    assert [one.at_s for one in found] == [3.0] * 12


def test_the_trace_is_one_that_the_simulator_reads(tmp_path):
    arrivals = schedule({"us-east": constant(4.0)}, {}, 1)
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
