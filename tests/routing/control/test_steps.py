import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.control.state import largest_change, no_more_than_now, step

NAMES = ("a", "b", "c", "d")


@st.composite
def rows(draw):
    weights = draw(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any))
    total = sum(weights)
    return {name: weight / total for name, weight in zip(NAMES, weights, strict=True) if weight}


@st.composite
def tables(draw):
    return {name: draw(rows()) for name in NAMES}


max_steps = st.floats(0.01, 1.0)


@given(tables(), tables(), max_steps)
def test_rows_sum_to_1_and_no_share_moves_more_than_a_step(table, target, max_step):
    part, after = step(table, target, max_step)
    assert 0 < part <= 1
    for source, row in after.items():
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-9)
        assert all(share > 0 or to == source for to, share in row.items())
        assert largest_change(table[source], row) <= max_step + 1e-9


@given(tables(), tables(), max_steps)
def test_steps_arrive_at_the_target_in_as_many_as_the_largest_change_takes(table, target, max_step):
    farthest = max(largest_change(table[source], target[source]) for source in NAMES)
    for _ in range(max(1, math.ceil(farthest / max_step - 1e-6))):
        before = table
        part, table = step(table, target, max_step)
        for source in NAMES:
            assert (
                largest_change(table[source], target[source]) <= largest_change(before[source], target[source]) + 1e-9
            )
    assert part == 1.0
    assert table == target


@given(tables(), tables(), max_steps, st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_on_the_way_no_region_gets_more_than_at_the_worse_end(table, target, max_step, demands):
    def given_to(shares, to):
        return sum(row.get(to, 0.0) * demand for row, demand in zip(shares.values(), demands, strict=True))

    _, after = step(table, target, max_step)
    for to in NAMES:
        assert given_to(after, to) <= max(given_to(table, to), given_to(target, to)) + 1e-6


@given(tables(), tables(), st.sets(st.sampled_from(NAMES)))
def test_only_rows_with_a_target_move(table, target, moving):
    _, after = step(table, {source: target[source] for source in moving}, 1.0)
    for source in NAMES:
        assert after[source] == (target[source] if source in moving else table[source])


@given(rows(), rows(), st.frozensets(st.sampled_from(NAMES)), st.sampled_from(NAMES))
def test_a_region_that_nobody_hears_of_gets_no_more(row, target, unsure, home):
    found = no_more_than_now(row, target, unsure, home)
    assert sum(found.values()) == pytest.approx(1.0)
    for to in NAMES:
        if to in unsure and to != home:
            assert found.get(to, 0.0) <= max(row.get(to, 0.0), 1e-9) + 1e-9
        elif to != home:
            assert found.get(to, 0.0) == pytest.approx(target.get(to, 0.0), abs=2e-9)


def test_nothing_to_do_is_done():
    assert step({"a": {"a": 1.0}}, {}, 0.2) == (1.0, {"a": {"a": 1.0}})
    assert step({"a": {"a": 1.0}}, {"a": {"a": 1.0}}, 0.2) == (1.0, {"a": {"a": 1.0}})
