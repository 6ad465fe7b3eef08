"""Shares as whole numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import RoutingError
from routing.targets.weights import integer_weights

rows = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.floats(0, 1), min_size=1, max_size=60).filter(
    lambda row: sum(row.values()) > 0
)


@given(rows)
def test_weights_sum_to_a_hundred_and_no_share_is_lost(row):
    weights = integer_weights(row)
    assert sum(weights.values()) == 100
    assert weights.keys() == {name for name, share in row.items() if share > 0}
    assert min(weights.values()) >= 1


@given(rows)
def test_weights_are_within_one_of_their_share_but_for_what_the_least_need(row):
    total = sum(row.values())
    exact = {name: 100 * share / total for name, share in row.items() if share > 0}
    lifted = sum(1 for value in exact.values() if value < 1)
    for name, weight in integer_weights(row).items():
        assert weight < exact[name] + 1 + 1e-9
        assert weight > exact[name] - 1 - lifted


@given(rows)
def test_the_order_of_a_row_does_not_matter(row):
    assert integer_weights(row) == integer_weights(dict(reversed(row.items())))


def test_an_example_by_hand():
    assert integer_weights({"a": 0.8, "b": 0.15, "c": 0.05}) == {"a": 80, "b": 15, "c": 5}
    assert integer_weights({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == {"a": 34, "b": 33, "c": 33}
    assert integer_weights({"a": 0.996, "b": 0.002, "c": 0.002}) == {"a": 98, "b": 1, "c": 1}


def test_more_regions_than_units_are_refused():
    with pytest.raises(RoutingError, match="101 regions have a share, and 100 units"):
        integer_weights({f"r{i}": 1 / 101 for i in range(101)})
