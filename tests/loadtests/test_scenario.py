"""Scenarios: they fit fleets that their author has not seen, and say what is wrong with them."""

import pytest
import yaml

from loadtests.demand import demand, level
from loadtests.roles import resolve
from loadtests.scenario import FOLDER, Level, Scenario, load_scenario, names
from loadtests.timed import Timed
from routing.errors import InputError
from routing.fleet import Fleet, Region
from routing.schema import validated

GOOD = {
    "name": "small",
    "duration_s": 20,
    "traffic": {"load": 0.4},
    "objectives": [{"kind": "failed", "at_most": 0.02}],
}


def one_region():
    return Fleet(
        regions={"alone": Region(gpus=3)},
        service_time_s=2.0,
        rings_ms=(50.0,),
        thresholds=({"load": 0.7, "ring": 1},),
        target_load=0.7,
    )


@pytest.mark.parametrize("name", names())
def test_each_scenario_of_the_package_fits_any_fleet(name, small_fleet, world, tiny_fleet):
    scenario = load_scenario(name)
    assert scenario.about
    assert name == FOLDER.joinpath(f"{name}.yaml").stem
    for fleet in (small_fleet, world, tiny_fleet, one_region()):
        roles = resolve(scenario.roles, fleet)
        timed = Timed.of(scenario.for_smoothing_s, fleet, 1.0)
        found, _ = demand(scenario, fleet, roles, timed)
        for region, rate in found.items():
            load = rate.count / timed(scenario.duration_s) / fleet.capacity_rps(region)
            assert 0.05 <= load <= 1.5, (name, region)  # of what the region can compute, whatever that is


def test_demand_follows_the_thresholds_of_the_fleet(small_fleet):
    assert level(0.4, small_fleet) == 0.4
    assert level(Level(threshold=1, part=0.0), small_fleet) == pytest.approx(0.75)
    assert level(Level(threshold=1, part=0.5), small_fleet) == pytest.approx(0.80)
    assert level(Level(threshold=3, part=1.0), small_fleet) == pytest.approx(1.0)
    assert level(Level(threshold=9, part=0.0), small_fleet) == pytest.approx(0.95)
    assert level(Level(threshold=0, part=0.5), small_fleet) == pytest.approx(0.375)


def test_times_scale_with_the_patience_of_the_fleet(small_fleet):
    assert Timed.of(20.0, small_fleet, 1.0)(60.0) == pytest.approx(30.0)  # its smoothing_s is 10
    assert Timed.of(None, small_fleet, 4.0)(60.0) == pytest.approx(15.0)


def test_roles_are_found_in_any_fleet(small_fleet, world):
    selectors = {
        "hot": "central",
        "near": {"near": "hot"},
        "far": {"beyond": "hot"},
        "rest": {"others": "hot"},
        "fourth": {"nth": 4},
        "away": "remote",
    }
    content = validated(Scenario, {**GOOD, "roles": selectors}).roles
    small = resolve(content, small_fleet)
    assert {role: small[role] for role in selectors} == {
        "hot": ("us-east",),
        "near": ("us-west",),
        "far": ("eu-west",),
        "rest": ("us-west", "eu-west"),
        "fourth": ("us-east",),
        "away": ("eu-west",),
    }
    large = resolve(content, world)
    assert set(large["near"]) | set(large["far"]) | set(large["hot"]) == set(world.names)
    assert resolve(content, small_fleet, {"hot": "eu-west"})["near"] == ()  # nobody within 40 ms


def test_regions_without_gpus_have_no_role(small_fleet):
    fleet = small_fleet.model_copy(update={"regions": {**small_fleet.regions, "us-west": Region(gpus=0)}})
    assert resolve({}, fleet)["all"] == ("us-east", "eu-west")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objectives": []}, "objectives: should hold at least one"),
        ({"objectives": [{"at_most": 1}]}, "objectives.0.kind: is missing; known are failed"),
        ({"objectives": [{"kind": "failures", "at_most": 0.1}]}, "objectives.0.kind: failures is no kind of objective"),
        (
            {"objectives": [{"kind": "failed", "at_mots": 0.1}]},
            "objectives.0.at_mots: unknown key; did you mean at_most",
        ),
        (
            {"objectives": [{"kind": "failed", "at_most": 2.0}]},
            "objectives.0.at_most: should be less than or equal to 1",
        ),
        ({"objectives": [{"kind": ["failed"]}]}, "objectives.0.kind: ['failed'] is no kind of objective"),
        ({"objectives": ["failed"]}, "objectives.0: should hold keys and values"),
        ({"objectives": [{"kind": "failed", "at_most": 0.1, "from_s": 20}]}, "objectives.0.from_s: 20 is not before"),
        (
            {"objectives": [{"kind": "failed", "at_most": 0.1, "until_s": 30.0}]},
            "objectives.0.until_s: 30 is after the end",
        ),
        ({"objectives": [{"kind": "recovers", "after_s": 10, "within_s": 9}]}, "objectives.0.after_s: 10 + within_s"),
        ({"traffic": {"laod": 0.4}}, "traffic.laod: unknown key; did you mean load"),
        ({"traffic": {"changes": [{"at_s": 25, "factor": 2}]}}, "traffic.changes.0.at_s: 25 is not before the end"),
        ({"failures": [{"at_s": 1, "region": "a", "vanishes": True}]}, "failures.0.vanishes: is for the simulator"),
        ({"failures": [{"at_s": 1, "region": "a", "gpus": 1}]}, "failures.0.gpus: is for the simulator"),
        ({"duration_s": 0}, "duration_s: should be greater than 0"),
        ({"generator": {"late_share": "much"}}, "generator.late_share: should be a number, and is 'much'"),
    ],
)
def test_a_slip_is_named_with_its_key(tmp_path, change, said):
    path = tmp_path / "slip.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(InputError) as error:
        load_scenario(path)
    assert f"{path}: {said}" in str(error.value)


def test_a_name_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(InputError, match=r"hotspot is no scenario .* did you mean hot-spot"):
        load_scenario("hotspot")


def test_roles_that_refer_to_nothing_are_named(small_fleet):
    scenario = validated(Scenario, {**GOOD, "roles": {"near": {"near": "hto"}}})
    with pytest.raises(InputError, match=r"roles\.near\.near: hto is no role"):
        resolve(scenario.roles, small_fleet)
    with pytest.raises(InputError, match="no role hit; did you mean hot"):
        resolve({"hot": "central"}, small_fleet, {"hit": "us-east"})
    with pytest.raises(InputError, match="us-eas is none of the fleet's regions; did you mean us-east"):
        resolve({"hot": "central"}, small_fleet, {"hot": "us-eas"})


def test_a_region_that_the_fleet_does_not_have_is_named_with_its_key(small_fleet):
    scenario = validated(Scenario, {**GOOD, "traffic": {"load": 0.4, "region_load": {"mars": 1.0}}})
    with pytest.raises(InputError, match=r"traffic\.region_load\.mars: mars is no role of the scenario and no region"):
        demand(scenario, small_fleet, resolve({}, small_fleet), Timed(1.0))
