import math
import os

import pytest
from pydantic import ValidationError

from routing.errors import InputError
from routing.fleet import Fleet, Region, RetryPolicy, Threshold, great_circle_ms, load_fleet


def test_the_example_fleet_reads_as_it_is_written(example_fleet):
    assert example_fleet.names == ("us-east", "us-west", "eu-west", "ap-south", "ap-east")
    assert example_fleet.regions["us-east"] == Region(gpus=120, latitude=38.9, longitude=-77.0)
    assert example_fleet.capacity_rps("us-east") == 48
    assert example_fleet.thresholds == (
        Threshold(load=0.75, ring=1),
        Threshold(load=0.85, ring=2),
        Threshold(load=0.95, ring=4),
    )
    assert (example_fleet.retry.attempts, example_fleet.retry.delay.burst_share) == (9, 0.2)


def test_a_fleet_never_changes(example_fleet):
    for part, key in ((example_fleet, "chunk"), (example_fleet.regions["us-east"], "gpus"), (RetryPolicy(), "delay")):
        with pytest.raises(ValidationError):
            setattr(part, key, 1)


def test_a_given_latency_holds_in_both_directions_and_others_come_from_coordinates(example_fleet):
    assert example_fleet.latency("us-east", "us-west") == example_fleet.latency("us-west", "us-east") == 62
    derived = example_fleet.latency("ap-south", "ap-east")
    assert derived == example_fleet.latency("ap-east", "ap-south")
    assert derived == great_circle_ms((19.1, 72.9), (35.7, 139.7))
    assert example_fleet.latency("us-east", "us-east") == 0


def test_a_latency_may_differ_by_direction(fleet_file):
    def change(content):
        content["latency_ms"]["us-west"] = {"us-east": 80}

    fleet = load_fleet(fleet_file(change))
    assert (fleet.latency("us-east", "us-west"), fleet.latency("us-west", "us-east")) == (62, 80)


def test_a_derived_latency_is_within_15_percent_of_those_that_the_example_gives():
    # The distances are known: half a meridian is 20,015 km.
    assert great_circle_ms((90, 0), (-90, 0)) == pytest.approx(20015 * 0.015, rel=1e-4)
    assert great_circle_ms((0, 179), (0, -179)) == pytest.approx(great_circle_ms((0, 0), (0, 2)))
    assert great_circle_ms((38.9, -77.0), (45.6, -121.2)) == pytest.approx(62, rel=0.15)
    assert great_circle_ms((38.9, -77.0), (53.3, -6.3)) == pytest.approx(75, rel=0.15)
    assert great_circle_ms((53.3, -6.3), (19.1, 72.9)) == pytest.approx(110, rel=0.15)


def test_rings_hold_each_region_once_nearest_first(example_fleet):
    assert example_fleet.rings("us-east") == (("us-east",), (), ("us-west", "eu-west"), ("ap-east", "ap-south"), ())
    for source in example_fleet.names:
        names = [name for ring in example_fleet.rings(source) for name in ring]
        assert sorted(names) == sorted(example_fleet.names)
        assert all(name in example_fleet.rings(source)[example_fleet.ring(source, name)] for name in names)


def test_a_region_beyond_the_last_ring_is_in_none():
    fleet = Fleet(
        regions={"a": Region(gpus=1), "b": Region(gpus=1), "c": Region(gpus=1)},
        latency_ms={"a": {"b": 10, "c": 99}, "b": {"c": 30}},
        service_time_s=1.0,
        rings_ms=(10.0, 50.0),
        thresholds=(Threshold(load=0.75, ring=2),),
        target_load=0.75,
    )
    assert [fleet.ring("a", name) for name in "abc"] == [0, 1, None]
    assert fleet.rings("a") == (("a",), ("b",), ())


def change_value(path, value):
    def change(content):
        *folders, last = path.split("/")
        for part in folders:
            content = content[int(part) if part.isdigit() else part]
        content[last] = value

    return change


def delete(path):
    def change(content):
        *folders, last = path.split("/")
        for part in folders:
            content = content[int(part) if part.isdigit() else part]
        del content[last]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_value("target_laod", 0.5), "target_laod: unknown key; did you mean target_load?"),
        (change_value("regions/us-east/gpu", 3), "regions.us-east.gpu: unknown key; did you mean gpus?"),
        (change_value("retry/delay/shares", 0.1), "retry.delay.shares: unknown key; did you mean share?"),
        (change_value("thresholds/1/rings", 2), "thresholds.1.rings: unknown key; did you mean ring?"),
        (change_value("colour", "red"), "colour: unknown key; known are chunk,"),
        (change_value("regions/us-east/gpus", -3), "regions.us-east.gpus: should be greater than or equal to 0"),
        (change_value("regions/us-east/least", 121), "regions.us-east.least: 121 is more than gpus (120)"),
        (change_value("regions/us-east/gpus", 2.5), "regions.us-east.gpus: should be a whole number, and is 2.5"),
        (change_value("regions/us-east/gpus", True), "regions.us-east.gpus: should be a whole number, and is True"),
        (change_value("regions/us-east/gpus", "12"), "regions.us-east.gpus: should be a whole number, and is '12'"),
        (change_value("regions/us-east/gpus", None), "regions.us-east.gpus: should be a whole number, and is empty"),
        (change_value("service_time_s", True), "service_time_s: should be a number, and is True"),
        (delete("regions/us-east/gpus"), "regions.us-east.gpus: is missing"),
        (delete("regions/us-east/latitude"), "regions.us-east.latitude: is missing; give both or none"),
        (change_value("regions/us-east/latitude", 91), "regions.us-east.latitude: should be less than or equal to 90"),
        (delete("service_time_s"), "service_time_s: is missing"),
        (change_value("service_time_s", 0), "service_time_s: should be greater than 0"),
        (change_value("service_time_s", math.nan), "service_time_s: should be a finite number, and is nan"),
        (change_value("smoothing_s", math.inf), "smoothing_s: should be a finite number, and is inf"),
        (change_value("chunk", 1.5), "chunk: should be less than or equal to 1, and is 1.5"),
        (change_value("rings_ms", [40, 90, 90]), "rings_ms.2: 90 is not above the ring before it"),
        (change_value("rings_ms", []), "rings_ms: should hold at least one"),
        (change_value("rings_ms", 40), "rings_ms: should be a list, and is 40"),
        (change_value("thresholds/2/ring", 5), "thresholds.2.ring: there is no ring 5: rings_ms has 4"),
        (change_value("thresholds/2/load", 0.85), "thresholds.2.load: 0.85 is not above the threshold before it"),
        (change_value("thresholds/2/ring", 1), "thresholds.2.ring: 1 is nearer than that of a cooler threshold"),
        (change_value("rings_ms", [1, 2, 3, 4]), "regions.us-east: no ring reaches it: us-west is nearest, 62 ms away"),
        (change_value("latency_ms/us-eats", {}), "latency_ms.us-eats: us-eats is none of the regions; did you mean"),
        (change_value("latency_ms/us-east/x", 3), "latency_ms.us-east.x: x is none of the regions"),
        (change_value("latency_ms/us-east/us-east", 3), "latency_ms.us-east.us-east: a region is not away from itself"),
        (change_value("latency_ms/us-east/us-west", -1), "latency_ms.us-east.us-west: should be greater"),
        (change_value("regions/ap-south", {"gpus": 3}), "latency_ms.us-east.ap-south: is missing, and cannot be"),
        (change_value("regions/US_East", {"gpus": 3}), "regions.US_East: should be made of a to z"),
        (change_value("regions/a.b", {"gpus": 3}), "regions.a.b: should be made of a to z"),
        (change_value("regions/" + "a" * 64, {"gpus": 3}), "at most 63 characters"),
        (change_value("regions", {}), "regions: should hold at least one"),
        (change_value("regions", {"a": {"gpus": 0}}), "regions: no region has a GPU"),
        (change_value("regions", ["a"]), "regions: should be keys and values"),
        (change_value("regions/us-east", None), "regions.us-east: should be keys and values, and is empty"),
        (change_value("retry/max_interval_s", 0.1), "retry.max_interval_s: 0.1 is below base_interval_s (0.25)"),
        (change_value("retry/delay/share", 0.5), "retry.delay.burst_share: 0.2 is below share (0.5)"),
        (change_value("retry/attempts", 0), "retry.attempts: should be greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(fleet_file, change, message):
    path = fleet_file(change)
    with pytest.raises(InputError) as caught:
        load_fleet(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("just text", "should hold keys and values, and is 'just text'"),
        ("- a\n", "should hold keys and values"),
        ("regions: {a: {gpus: 1}\n", "line 2: "),
        (
            "regions:\n  a: {gpus: 1}\n  b: {gpus: 1}\n  a: {gpus: 2}\n",
            "line 4: the key a is there twice, first in li",
        ),
        ("regions:\n  no: {gpus: 1}\n", "line 2: the key no should be text; put it in quotes"),
        ("regions: &a [*a]\n", "regions: should be keys and values"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: \x01\n", "is no YAML"),
        ("regions: {? {a: 1} : 2}\n", "unhashable"),
        ("a: 2001-99-99\n", "is no YAML"),
    ],
)
def test_a_file_that_is_no_fleet_is_one_line(fleet_file, text, message):
    with pytest.raises(InputError) as caught:
        load_fleet(fleet_file(text=text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_small_file_that_stands_for_a_huge_value_is_refused_at_once(fleet_file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(InputError, match=r"a0: unknown key.* \(and 44 more\)"):
        load_fleet(fleet_file(text="\n".join(lines)))


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_fleet(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_fleet(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("regions: é".encode("latin-1"))
    with pytest.raises(InputError, match=r"is no UTF-8 text \(byte 9\)"):
        load_fleet(latin)
    if os.geteuid():
        latin.chmod(0)
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            load_fleet(latin)


def test_numbers_with_an_exponent_and_a_mark_at_the_start_are_read(fleet_file):
    text = fleet_file().read_text().replace("service_time_s: 2.5", "service_time_s: 25e-1")
    assert load_fleet(fleet_file(text="\ufeff" + text)).service_time_s == 2.5


def test_a_fleet_file_of_the_last_release_is_read_with_a_warning_that_says_what_to_change(fleet_file, capsys):
    fleet = load_fleet(fleet_file(lambda content: content.update(floor_share=0.01)))
    assert "floor_share has no effect any more: the table has no shares for retries" in capsys.readouterr().err
    assert not hasattr(fleet, "floor_share")


@pytest.mark.parametrize(
    ("never", "text"),
    [
        ({"eu-wst": ["us-east"]}, "never.eu-wst: eu-wst is none of the regions; did you mean eu-west?"),
        ({"eu-west": ["us-est"]}, "never.eu-west.us-est: us-est is none of the regions; did you mean"),
        ({"eu-west": ["eu-west"]}, "never.eu-west: names itself"),
    ],
)
def test_law_that_names_no_region_is_refused(fleet_file, never, text):
    with pytest.raises(InputError) as found:
        load_fleet(fleet_file(lambda content: content.update(never=never)))
    assert text in str(found.value)


def test_law_that_leaves_jobs_nowhere_to_go_is_refused(fleet_file):
    def change(content):
        content["regions"]["eu-west"]["gpus"] = 0
        content["never"] = {"eu-west": ["us-east", "us-west", "ap-south", "ap-east"]}

    with pytest.raises(InputError, match=r"never\.eu-west: leaves its jobs nowhere to go"):
        load_fleet(fleet_file(change))
