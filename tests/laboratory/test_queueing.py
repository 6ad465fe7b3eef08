import random
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laboratory.arrivals import poisson
from laboratory.queueing import erlang_b, ideal_queue


@given(servers=st.integers(1, 40), offered=st.fractions(0, 60, max_denominator=20))
def test_erlang_b_is_as_its_direct_form_says(servers, offered):
    """B = (a^c / c!) / sum of a^k / k!, in exact fractions."""
    terms = [offered**k / factorial(k) for k in range(servers + 1)]
    assert erlang_b(servers, float(offered)) == pytest.approx(float(terms[-1] / sum(terms)), abs=1e-12)


def times(rps, seconds=6_000.0):
    return lambda generator: [one.at_s for one in poisson({"all": rps}, seconds, generator)]


def test_a_queue_without_patience_is_erlangs():
    queue = ideal_queue(4, times(5.6), lambda _: 0.5, 0.0, random.Random(1))
    assert queue.failed_share == pytest.approx(erlang_b(4, 2.8), abs=0.006)
    assert queue.p50_s == queue.p99_s == pytest.approx(0.5)


def test_a_queue_of_endless_patience_loses_nothing_and_waits_as_erlang_c_says():
    # M/M/4 at 70 %: P(wait) = C = B / (1 - rho (1 - B)) and mean wait C / (c mu - lambda).
    queue = ideal_queue(4, times(5.6), lambda g: g.expovariate(2.0), 1e9, random.Random(1))
    blocked = erlang_b(4, 2.8)
    waits = blocked / (1 - 0.7 * (1 - blocked))
    assert queue.failed_share == 0
    assert waits == pytest.approx(0.4287, abs=1e-4)
    # P(response > t) of M/M/4 has its median between that of service alone and of service and all waits.
    assert 0.34 < queue.p50_s < 0.7


def test_at_110_percent_a_patient_queue_loses_what_no_server_has_time_for():
    queue = ideal_queue(12, times(26.4), lambda _: 0.5, 5.0, random.Random(1))
    assert queue.failed_share == pytest.approx(1 - 1 / 1.1, abs=0.006)


def test_a_burst_waits_in_rounds():
    queue = ideal_queue(12, lambda _: [0.0] * 60, lambda _: 0.5, 1.0, random.Random(1))
    assert queue.failed_share == pytest.approx(24 / 60)
    assert queue.p99_s == pytest.approx(1.5)
