"""What a retry policy costs at most."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.fleet import RetryPolicy
from routing.retries import attempt_groups, longest_backoff_s


def test_waits_of_the_default_policy():
    # 0.25 * 2^(k-1), at most 5, by hand.
    assert longest_backoff_s(RetryPolicy()) == (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0)


def test_one_attempt_waits_for_nothing():
    assert longest_backoff_s(RetryPolicy(attempts=1)) == ()


@given(st.integers(1, 100), st.floats(1e-3, 1e3), st.floats(1, 1e3))
def test_waits_grow_and_never_pass_the_limit(attempts, base, factor):
    waits = longest_backoff_s(RetryPolicy(attempts=attempts, base_interval_s=base, max_interval_s=base * factor))
    assert len(waits) == attempts - 1
    assert list(waits) == sorted(waits)
    assert all(wait <= base * factor for wait in waits)


def test_retries_leave_for_the_rings_in_proportion_to_gpus_and_never_against_the_law(example_fleet):
    fleet = example_fleet.model_copy(update={"never": {"us-east": ("eu-west",)}})
    groups = attempt_groups(fleet, "us-east", {"us-east": 1.0})
    assert groups[0] == {"us-east": 1.0}
    assert all(sum(group.values()) == pytest.approx(1) for group in groups if group)
    assert {name for group in groups for name in group} == set(fleet.names) - {"eu-west"}
    wide = example_fleet.model_copy(update={"rings_ms": (400.0,)})
    others = attempt_groups(wide, "us-east", {"us-east": 1.0})[2]
    assert others["us-west"] / others["ap-east"] == pytest.approx(2)  # 80 GPUs and 40
