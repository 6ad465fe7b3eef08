from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.console import without_nan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(VALUES)
def test_what_a_command_prints_is_json_whatever_it_holds(value):
    json.dumps(without_nan(value), allow_nan=False)


def test_what_is_no_number_is_null_and_all_else_stays():
    given = {"fvd": math.nan, "gates": [{"value": math.inf}, (1.5, 2)], "name": "NaN"}
    assert without_nan(given) == {"fvd": None, "gates": [{"value": None}, [1.5, 2]], "name": "NaN"}
