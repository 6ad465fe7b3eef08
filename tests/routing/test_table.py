import json
import threading
from datetime import UTC, datetime

import pytest

from routing.errors import InputError, RoutingError
from routing.table import Move, RoutingTable

NOW = datetime(2025, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def table():
    move = Move(from_region="a", to="b", source="a", rps=1.5, ring=1, why="a is hot")
    shares = {"a": {"a": 0.7, "b": 0.3}, "b": {"b": 1.0}}
    return RoutingTable(generated_at=NOW, shares=shares, moves=(move,), unserved_rps={"a": 0.5, "b": 0.0})


def test_a_table_comes_back_from_its_file_as_it_was(table, tmp_path):
    path = tmp_path / "table.json"
    table.write(path)
    assert RoutingTable.read(path) == table
    assert json.loads(path.read_text()) == {
        "epoch": 1,
        "version": 1,
        "generated_at": "2025-01-31T12:00:00.123456+00:00",
        "shares": {"a": {"a": 0.7, "b": 0.3}, "b": {"b": 1.0}},
        "moves": [{"from": "a", "to": "b", "source": "a", "rps": 1.5, "ring": 1, "why": "a is hot"}],
        "unserved_rps": {"a": 0.5, "b": 0.0},
    }
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_share_that_is_not_listed_is_0(table):
    assert (table.share("a", "b"), table.share("b", "a")) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["shares"]["a"].update({"b": 0.2}), "shares.a: sums to 0.9 and should to 1"),
        (lambda c: c["shares"].update({"a": {}}), "shares.a: sums to 0 and should to 1"),
        (lambda c: c["shares"]["a"].update({"b": -0.3}), "shares.a.b: should be greater than or equal to 0"),
        (lambda c: c["shares"]["a"].update({"b": 1.3}), "shares.a.b: should be less than or equal to 1"),
        (lambda c: c["shares"]["a"].update({"b": None}), "shares.a.b: should be a number, and is empty"),
        (lambda c: c.update({"shares": {}}), "shares: "),
        (lambda c: c.pop("shares"), "shares: is missing"),
        (lambda c: c.update({"generated_at": "noon"}), "generated_at: should be a time with its zone"),
        (lambda c: c.update({"generated_at": "2025-01-31T12:00:00"}), "generated_at: should be a time with its zone"),
        (lambda c: c.update({"version": 0}), "version: should be greater than or equal to 1"),
        (lambda c: c.update({"share": {}}), "share: unknown key; did you mean shares?"),
        (lambda c: c["moves"][0].pop("from"), "moves.0.from: is missing"),
    ],
)
def test_a_table_is_checked_when_it_is_read(table, change, message):
    content = table.to_dict()
    content = json.loads(json.dumps(content))
    change(content)
    with pytest.raises(InputError) as caught:
        RoutingTable.from_json(json.dumps(content), name="table.json")
    assert str(caught.value).startswith(f"table.json: {message}")


def test_a_table_with_nan_or_half_a_table_is_refused(table):
    with pytest.raises(InputError, match="NaN is no number"):
        RoutingTable.from_json(table.to_json().replace("0.7", "NaN"))
    with pytest.raises(InputError, match="is no JSON"):
        RoutingTable.from_json(table.to_json()[:-20])


def test_a_table_of_another_fleet_is_refused(table, example_fleet):
    with pytest.raises(InputError, match=r"shares\.a: a is none of the fleet's regions"):
        table.check(example_fleet)
    part = RoutingTable(generated_at=NOW, shares={"us-east": {"us-east": 1.0}})
    with pytest.raises(InputError, match=r"shares\.us-west: is missing"):
        part.check(example_fleet)


def test_who_reads_while_a_table_is_replaced_gets_a_whole_one(table, tmp_path):
    path = tmp_path / "table.json"
    table.write(path)
    done = threading.Event()

    def write():
        for version in range(2, 60):
            table.model_copy(update={"version": version}).write(path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(RoutingTable.read(path).version)
    writer.join()
    assert RoutingTable.read(path).version == 59
    assert seen <= set(range(1, 60))


def test_a_table_that_cannot_be_written_is_an_error_and_leaves_nothing(table, tmp_path):
    with pytest.raises(RoutingError, match="cannot be written"):
        table.write(tmp_path / "none" / "table.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RoutingError, match="cannot be written"):
        table.write(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_table_against_the_law_is_refused_with_the_share_that_is(example_fleet, now):
    fleet = example_fleet.model_copy(update={"never": {"eu-west": ("us-east",)}})
    shares = {name: {name: 1.0} for name in fleet.names} | {"eu-west": {"eu-west": 0.9, "us-east": 0.1}}
    table = RoutingTable(generated_at=now, shares=shares)
    with pytest.raises(InputError, match=r"shares\.eu-west\.us-east: is 0\.1, and never\.eu-west of the fleet forbids"):
        table.check(fleet)


def test_a_table_of_the_last_release_is_read_with_its_old_names(now):
    text = RoutingTable(generated_at=now, shares={"a": {"a": 1.0}}, unserved_rps={"a": 2.0}).to_json()
    assert RoutingTable.from_json(text.replace("unserved_rps", "left_over_rps")).unserved_rps == {"a": 2.0}
