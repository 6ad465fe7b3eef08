import json

import pytest

from routing.errors import InputError
from routing.load import Load, load_load


@pytest.fixture
def load_file(examples, tmp_path):
    def write(change=None, text=None):
        content = json.loads((examples / "load.json").read_text())
        if change is not None:
            change(content)
        path = tmp_path / "load.json"
        path.write_text(json.dumps(content) if text is None else text)
        return path

    return write


def test_the_example_load_reads_as_it_is_written(examples, example_fleet):
    load = load_load(examples / "load.json", example_fleet)
    assert load.demand_rps["us-east"] == 52
    assert load == Load.of(example_fleet, load.demand_rps)


def test_measured_load_and_traffic_may_be_there(load_file, example_fleet):
    def change(content):
        content["load"] = {"us-east": {"gpu": 0.9, "queue": 1.2}}
        content["rps"] = {"us-east": {"us-east": 40, "us-west": 12}}

    load = load_load(load_file(change), example_fleet)
    assert load.load["us-east"]["queue"] == 1.2
    assert load.rps["us-east"]["us-west"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["demand_rps"].pop("us-east"), "demand_rps.us-east: is missing"),
        (lambda c: c["capacity_rps"].pop("us-east"), "capacity_rps.us-east: is missing"),
        (lambda c: c.pop("demand_rps"), "demand_rps: is missing"),
        (lambda c: c["demand_rps"].update({"us-eats": 1}), "demand_rps.us-eats: is none of the fleet's regions; did"),
        (lambda c: c["demand_rps"].update({"us-east": -1}), "demand_rps.us-east: should be greater than or equal to 0"),
        (lambda c: c["demand_rps"].update({"us-east": "9"}), "demand_rps.us-east: should be a number, and is '9'"),
        (lambda c: c["demand_rps"].update({"us-east": True}), "demand_rps.us-east: should be a number, and is True"),
        (lambda c: c["demand_rps"].update({"us-east": 1e300}), "demand_rps.us-east: should be less than"),
        (lambda c: c.update({"demand": {}}), "demand: unknown key; did you mean demand_rps?"),
        (lambda c: c.update({"rps": {"us-east": {"mars": 1}}}), "rps.us-east.mars: is none of the fleet's regions"),
        (lambda c: c.update({"load": {"mars": {}}}), "load.mars: is none of the fleet's regions"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(load_file, example_fleet, change, message):
    path = load_file(change)
    with pytest.raises(InputError) as caught:
        load_load(path, example_fleet)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "should hold keys and values"),
        ('{"a": 1,\n', "line 2: is no JSON"),
        ('{"a": 1, "a": 2}', "the key a is there twice"),
        ('{"demand_rps": {"us-east": NaN}}', "NaN is no number"),
        ('{"demand_rps": {"us-east": -Infinity}}', "-Infinity is no number"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_file_that_is_no_load_is_one_line(load_file, example_fleet, text, message):
    with pytest.raises(InputError) as caught:
        load_load(load_file(text=text), example_fleet)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_load_is_made_from_a_fleet_and_its_demand(example_fleet):
    load = Load.of(example_fleet, {"us-west": 3})
    assert load.demand_rps == {"us-east": 0, "us-west": 3, "eu-west": 0, "ap-south": 0, "ap-east": 0}
    assert load.capacity_rps["ap-east"] == 16
    with pytest.raises(InputError, match=r"demand_rps\.mars"):
        Load.of(example_fleet, {"mars": 3})
