import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.control.state import NO_BURST, BurstPolicy, Sign, next_burst

POLICY = BurstPolicy(retries_together=4.0)


def sign(demand=10.0, usual=10.0, room=15.0, retries=0.0, usual_retries=0.0, seconds=2.0):
    return Sign(demand, usual, room, retries, usual_retries, seconds)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (sign(demand=40.0), "demand of 40 rps, where 10 are usual"),
        (sign(demand=19.0), ""),  # not twice as much
        (sign(demand=40.0, room=50.0), ""),  # there is room for it
        (sign(demand=3.0, usual=1.0, room=1.0), ""),  # six jobs instead of two happen
        (sign(demand=9.0, usual=1.0, room=1.0), "demand of 9 rps, where 1 are usual"),
        (sign(retries=30.0), "4.00 attempts a job, 30 retries per second where 0 are usual"),
        (sign(retries=4.0), ""),  # eight retries are those of two jobs
        (sign(retries=30.0, usual_retries=20.0), ""),  # it is as overloaded as it was
        (sign(retries=60.0, usual_retries=10.0), "7.00 attempts a job, 60 retries per second where 10 are usual"),
        (sign(demand=100.0, usual=90.0, room=200.0, retries=40.0), ""),  # 1.4 attempts
    ],
)
def test_a_burst_begins_with_much_more_demand_than_there_is_room_for_or_with_refusals(now, why):
    assert next_burst(NO_BURST, now, 5.0, POLICY).why == why


def test_a_burst_ends_by_lower_limits_than_it_began_and_after_a_calm_time():
    burst = next_burst(NO_BURST, sign(demand=40.0), 0.0, POLICY)
    burst = next_burst(burst, sign(demand=22.0, usual=15.0), 10.0, POLICY)  # above 1.3 times, below twice
    burst = next_burst(burst, sign(retries=6.0, usual_retries=1.0), 20.0, POLICY)  # would not have begun one
    assert next_burst(NO_BURST, sign(retries=6.0, usual_retries=1.0), 20.0, POLICY) == NO_BURST
    assert (burst.since, burst.loud_at) == (0.0, 20.0)
    for now in (22.0, 30.0, 39.9):
        burst = next_burst(burst, sign(), now, POLICY)
        assert burst.since == 0.0
    assert next_burst(burst, sign(), 40.0, POLICY) == NO_BURST


def test_a_lasting_rise_is_no_burst_once_it_is_usual():
    burst = next_burst(NO_BURST, sign(demand=40.0), 0.0, POLICY)
    assert next_burst(burst, sign(demand=40.0, usual=35.0), 20.0, POLICY) == NO_BURST


@given(st.lists(st.tuples(st.floats(0.1, 10), *[st.floats(0, 1e3)] * 4)))
def test_a_burst_lasts_as_long_as_the_calm_at_least(rounds):
    burst, now = NO_BURST, 0.0
    for seconds, demand, usual, retries, usual_retries in rounds:
        now += seconds
        before = burst
        burst = next_burst(before, Sign(demand, usual, 10.0, retries, usual_retries, seconds), now, POLICY)
        if before.since is not None and burst.since is None:
            assert now - before.since >= POLICY.calm_s
        if burst.since is not None:
            assert before.since in {None, burst.since}
