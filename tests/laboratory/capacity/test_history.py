from datetime import UTC, datetime

import numpy as np
import pytest

from laboratory.capacity.history import read_history
from routing.errors import InputError


@pytest.fixture
def read(history, fleet):
    def read(content, zone=None):
        return read_history(history(content), fleet, zone)

    return read


def test_a_plain_history_is_read_without_repairs(read, rows):
    found = read(rows())
    assert found.repairs == ()
    assert (found.interval_s, found.days) == (3600.0, 7.0)
    assert found.rps.shape == (168, 3)
    assert found.rps[0].tolist() == pytest.approx([20.0, 16.0, 12.0])
    assert found.times()[1] == datetime(2025, 9, 1, 1, tzinfo=UTC)


def test_rows_may_be_in_any_order(read, rows):
    given = rows(days=2)
    assert (read(given).rps == read(given[::-1]).rps).all()


def test_a_row_that_is_there_twice_counts_once_and_is_named(read, rows):
    given = rows(days=2)
    found = read([*given, given[5], given[9]])
    assert found.repairs == ("2 rows were there twice with the same requests; each counts once",)
    assert (found.rps == read(given).rps).all()


def test_gaps_are_named_and_left_open(read, rows):
    given = [row for i, row in enumerate(rows()) if i not in {3, 30}]
    found = read(given)
    assert found.repairs == ("a: 2 of 168 intervals are missing and taken from the same time of other days",)
    assert np.isnan(found.rps).sum() == 2


def test_offsets_are_put_into_utc_and_named(read, rows):
    given = rows(days=2)
    moved = [
        (datetime.fromisoformat(time).astimezone().isoformat().replace("+00:00", "Z") if i % 2 else time, *rest)
        for i, (time, *rest) in enumerate(given)
    ]
    assert (read(moved).rps == read(given).rps).all()
    east = [(time.replace("T00:00:00+00:00", "T02:00:00+02:00"), *rest) for time, *rest in given]
    found = read(east)
    assert (found.rps == read(given).rps).all()
    assert found.repairs == ("times have 2 different offsets from UTC; all were put into UTC",)


def test_times_without_a_zone_are_taken_in_the_one_that_is_named(read, rows):
    given = [(time.removesuffix("+00:00"), *rest) for time, *rest in rows(days=2)]
    found = read(given, "Asia/Tokyo")
    assert found.start == datetime(2025, 8, 31, 15, tzinfo=UTC)
    assert found.repairs == ("times without a zone were taken as Asia/Tokyo",)


def test_a_region_without_rows_is_planned_without_users(read, rows):
    found = read([row for row in rows() if row[1] != "c"])
    assert found.repairs == ("c has no rows: it is planned without users",)
    assert (found.rps[:, 2] == 0).all()


def changed(rows, at, **parts):
    given = [list(row) for row in rows]
    for name, value in parts.items():
        given[at][("time", "region", "requests").index(name)] = value
    return given


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"requests": -5}, "line 9: requests is -5, below 0"),
        ({"requests": "nan"}, "line 9: requests is nan; leave rows out"),
        ({"requests": "inf"}, "line 9: requests is inf"),
        ({"requests": "many"}, "line 9: requests is no number: many"),
        ({"requests": 1e12}, "line 9: requests is 1000000000000.0, above"),
        ({"region": "d"}, "line 9: d is none of the fleet's regions; known are a, b, c"),
        ({"time": "2025-09-01T02:00:00"}, "line 9: 2025-09-01T02:00:00 has no time zone"),
        ({"time": "yesterday"}, "line 9: time is no ISO 8601 time such as"),
        ({"time": "2025-09-01T02:07:00+00:00"}, "is no multiple of"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_line(read, rows, parts, text):
    with pytest.raises(InputError) as caught:
        read(changed(rows(days=2), 7, **parts))
    assert text in str(caught.value)
    assert "history.csv" in str(caught.value)


def test_contradictory_rows_are_an_error(read, rows):
    given = rows(days=2)
    time, region, requests = given[4]
    with pytest.raises(InputError, match=f"b at .* is there twice, with {requests} requests in line 6 and 7 here"):
        read([*given, (time, region, 7)])


def test_times_with_and_without_zone_are_an_error_even_where_a_zone_is_named(read, rows):
    given = changed(rows(days=2), 7, time="2025-09-01T02:00:00")
    with pytest.raises(InputError, match="some times have a zone and some have none"):
        read(given, "UTC")


@pytest.mark.parametrize(
    ("time", "what"), [("2025-10-26T02:00:00", "comes twice"), ("2025-03-30T02:00:00", "does not exist")]
)
def test_hours_of_a_change_of_clocks_are_an_error(read, time, what):
    with pytest.raises(InputError, match=f"{what} in Europe/Berlin, where clocks are changed"):
        read([(time, "a", 5)], "Europe/Berlin")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "has no column time"),
        ("when,region,requests\n", "has no column time"),
        ("time,region,requests\n", "has no rows"),
        ("time,region,requests\n2025-09-01T00:00:00Z,a,5\n", "has one interval only"),
    ],
)
def test_what_is_no_history_is_an_error(read, content, text):
    with pytest.raises(InputError, match=text):
        read(content)


def test_a_short_or_coarse_or_empty_or_holey_history_is_an_error(read, rows):
    with pytest.raises(InputError, match=r"covers 12\.0 hours; a day is the least"):
        read(rows(days=0.5))
    with pytest.raises(InputError, match="has intervals of 6 hours; an hour is the most"):
        read(rows(step_s=6 * 3600))
    with pytest.raises(InputError, match="has no requests at all"):
        read(rows(rps=(0.0, 0.0, 0.0)))
    holey = [row for i, row in enumerate(rows()) if row[1] != "b" or i % 4]
    with pytest.raises(InputError, match="b: 42 of 168 intervals are missing; 20 % is the most"):
        read(holey)


def test_an_unreadable_file_is_an_error(fleet, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_history(tmp_path / "none.csv", fleet)
    with pytest.raises(InputError, match="is no file"):
        read_history(tmp_path, fleet)
    (tmp_path / "binary.csv").write_bytes(b"time\xff\xfe")
    with pytest.raises(InputError, match="is no UTF-8 text"):
        read_history(tmp_path / "binary.csv", fleet)


def test_parquet_is_read_as_csv_is(read, rows, fleet, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    given = rows(days=2)
    times, regions, requests = zip(*given, strict=True)
    path = tmp_path / "history.parquet"
    stamps = pa.array([datetime.fromisoformat(time) for time in times], pa.timestamp("us", tz="UTC"))
    parquet.write_table(pa.table({"time": stamps, "region": regions, "requests": requests}), path)
    assert (read_history(path, fleet).rps == read(given).rps).all()
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="is no Parquet that can be read"):
        read_history(path, fleet)
