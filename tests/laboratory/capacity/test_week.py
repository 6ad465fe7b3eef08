import numpy as np
import pytest

from laboratory.capacity.history import read_history
from laboratory.capacity.planning import Launch, Planning, hour_name, planned_week


@pytest.fixture
def week(history, rows, fleet):
    def make(given=None, **planning):
        settings = Planning(**({"peak_within": 1.0} | planning))
        return planned_week(read_history(history(given or rows()), fleet), fleet, settings)

    return make


def test_a_week_is_the_highest_of_all_weeks_times_growth(week, rows):
    first = rows(days=14)
    higher = [(t, r, 2 * n) if "2025-09-10" in t and r == "a" else (t, r, n) for t, r, n in first]
    plain, grown = week(higher), week(higher, growth=1.5)
    assert plain.rps[48, 0] == pytest.approx(40.0)  # the second Wednesday
    assert plain.rps[24, 0] == pytest.approx(20.0)
    assert np.allclose(grown.rps, 1.5 * plain.rps)
    assert week(higher, peak=0.5).rps[48, 0] == pytest.approx(30.0)
    assert plain.peak(0) == (pytest.approx(40.0), 48)
    assert hour_name(48) == "Wed 00 h UTC"


def test_the_highest_interval_of_an_hour_counts(week, rows):
    given = rows(days=7, step_s=900)
    given[3] = (given[3][0], "a", 9000)  # 10 rps for a quarter of an hour that has 20 elsewhere
    given[6] = (given[6][0], "a", 45_000)
    assert week(given).rps[0, 0] == pytest.approx(50.0)


def test_launches_are_hours_of_one_moment_for_all(week):
    launch = Launch(name="x", factor=3.0, day="tuesday", from_hour=22.0, hours=4.0, zone="America/New_York")
    base, launched = week(), week(launches=(launch,))
    factor = launched.rps / base.rps
    # 22 h in New York in January is 3 h UTC on Wednesday.
    assert np.flatnonzero(factor[:, 0] > 1).tolist() == [51, 52, 53, 54]
    only = week(launches=(launch.model_copy(update={"regions": ("b",)}),))
    assert ((only.rps / base.rps) > 1).sum(axis=0).tolist() == [0, 4, 0]


def test_a_launch_on_sunday_night_goes_on_on_monday(week):
    launch = Launch(name="x", factor=2.0, day="sunday", from_hour=23.0, hours=2.0)
    factor = week(launches=(launch,)).rps / week().rps
    assert np.flatnonzero(factor[:, 0] > 1).tolist() == [0, 167]


def test_hours_that_the_history_does_not_have_are_as_on_other_days(week, rows):
    found = week(rows(days=3))
    assert found.rps[167, 0] == pytest.approx(found.rps[23, 0])
    assert any("96 of 168 hours are not in the history" in note for note in found.notes)
