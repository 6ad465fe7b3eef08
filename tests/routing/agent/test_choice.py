"""Which control loop an agent goes by."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.agent.agent import Choice
from routing.control.rows import Row

WELL = Row(region="a", epoch=1, version=1, shares={"a": 1.0})
BLIND = WELL.model_copy(update={"not_ready": "frozen: nothing is heard"})
NEW = WELL.model_copy(update={"not_ready": "warming up", "warming": True})
HOLD_S = 10.0


@pytest.fixture
def choice():
    return Choice(HOLD_S)


def test_the_first_that_works_is_gone_by_at_once(choice):
    assert choice.choose([None, WELL], 0.0) == 1


def test_to_begin_with_a_blind_loop_is_better_than_none(choice):
    assert choice.choose([None, BLIND], 0.0) == 1
    assert choice.choose([None, BLIND], 1.0) is None  # what it says is no news


def test_a_loop_that_has_just_started_is_not_gone_by(choice):
    assert choice.choose([NEW, None], 0.0) is None
    assert choice.choose([NEW, BLIND], 1.0) == 1
    assert choice.choose([WELL, BLIND], 2.0) is None


def test_a_loop_that_is_silent_for_a_moment_is_not_left(choice):
    choice.choose([WELL, WELL], 0.0)
    for second in range(1, 10):
        assert choice.choose([None, WELL], float(second)) is None
    assert choice.choose([WELL, WELL], 10.0) == 0


def test_a_loop_that_stays_silent_is_left_and_gone_back_to_when_it_works_again(choice):
    choice.choose([WELL, WELL], 0.0)
    assert choice.choose([None, WELL], 1.0) is None
    assert choice.choose([None, WELL], 11.0) == 1
    assert choice.choose([WELL, WELL], 12.0) == 1
    assert choice.choose([WELL, WELL], 21.9) == 1
    assert choice.choose([WELL, WELL], 22.0) == 0


def test_while_none_works_nothing_changes(choice):
    choice.choose([WELL, WELL], 0.0)
    for second in range(1, 100):
        assert choice.choose([None, BLIND], float(second)) is None
    assert choice.choose([None, WELL], 101.0) is None  # it works, but not for long yet
    assert choice.choose([None, WELL], 111.0) == 1


@given(st.lists(st.lists(st.sampled_from([None, WELL, BLIND]), min_size=3, max_size=3), min_size=1, max_size=60))
def test_changes_are_as_far_apart_as_it_holds(answers):
    choice, changes = Choice(HOLD_S), []
    for second, given_now in enumerate(answers):
        before = choice.current
        chosen = choice.choose(given_now, float(second))
        assert chosen is None or given_now[chosen] is not None
        if before is not None:
            assert chosen is None or not given_now[chosen].not_ready
            if choice.current != before:
                changes.append(second)
    assert all(later - earlier >= HOLD_S for earlier, later in pairwise(changes))
