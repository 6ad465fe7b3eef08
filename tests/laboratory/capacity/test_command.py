import json

import pytest

from laboratory.capacity.planning import load_planning
from routing.cli import main
from routing.errors import InputError
from routing.fleet import load_fleet


@pytest.fixture
def capacity(history, rows, bench, fleet, tmp_path, capsys):
    """Runs the command on a small history; (status, document or None, what was said)."""
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet.model_dump_json(exclude_unset=True))

    def run(*more, given=None, planning=None):
        arguments = ["capacity", "--json", "--traffic", str(history(given or rows())), "--fleet", str(path)]
        arguments += ["--service-time", str(bench)]
        if planning is not None:
            (tmp_path / "capacity.yaml").write_text(json.dumps(planning))
            arguments += ["--scenario", str(tmp_path / "capacity.yaml")]
        status = main([*arguments, *more])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out.startswith("{") else None, captured.err

    return run


def test_the_document_has_the_keys_of_the_contract(capacity):
    status, found, _ = capacity("--no-sensitivity")
    assert status == 0
    for one in found["regions"].values():
        assert one.keys() >= {"gpus", "peak_rps", "utilisation", "blocking"}
        assert one["gpus"] >= one["gpus_in_service"] >= one["gpus_alone"]
        assert one["blocking"] <= 0.01
        assert one["utilisation"] <= 0.75
    assert len(found["assumptions"]) > 8
    assert found["repairs"] == []


def test_sensitivity_is_found_and_drawn(capacity, tmp_path):
    status, found, _ = capacity("--plot", str(tmp_path / "plots"))
    assert status == 0
    gpus = [row["gpus"] for row in found["sensitivity"]["service_time"]]
    assert gpus == sorted(gpus)
    assert gpus[-1] > 3 * gpus[0]
    worst = [row for row in found["sensitivity"]["retries"] if row["load"] == 1.5 and row["case"].endswith("lost")]
    failures = [row["failure_share"] for row in worst]
    assert failures == sorted(failures, reverse=True)  # more attempts, fewer failures
    assert found["sensitivity"]["failure_goal_met"] is True
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["gpus.png", "sensitivity.png", "week.png"]


def test_growth_and_prices_count(capacity):
    plan = {"growth": 2.0, "goal": {"lose_a_region": False}, "margin": 0.0, "prices": {"gpu_hour": 1.0}}
    _, once, _ = capacity("--no-sensitivity", planning=plan | {"growth": 1.0})
    _, twice, _ = capacity("--no-sensitivity", planning=plan)
    assert twice["total"]["gpus"] > 1.7 * once["total"]["gpus"]
    assert twice["total"]["cost_per_month"] == 730 * twice["total"]["gpus"]


def test_repairs_are_named(capacity, rows):
    _, found, _ = capacity("--no-sensitivity", given=[*rows(), rows()[0]])
    assert found["repairs"] == ["1 rows were there twice with the same requests; each counts once"]


@pytest.mark.parametrize(
    ("planning", "text"),
    [
        ({"growht": 2}, "capacity.yaml: growht: unknown key; did you mean growth?"),
        ({"zone": "Mars"}, "zone: should be a time zone such as Europe/Berlin or UTC"),
        ({"model": "animator:2"}, "bench.json: model: is of animator:1, and animator:2 is asked for"),
        (
            {"launches": [{"name": "x", "factor": 2, "day": "monday", "from_hour": 3, "hours": 2, "regions": ["z"]}]},
            "z",
        ),
        ({"goal": {"blocking": 0.2}}, "goal.blocking_in_loss: 0.05 is below blocking (0.2)"),
        ({"prices": {"regions": {"d": 2.0}}}, "prices.regions: d is none of the fleet's regions"),
    ],
)
def test_an_error_names_the_file_and_the_key(capacity, planning, text):
    status, found, said = capacity(planning=planning)
    assert (status, found) == (2, None)
    assert text in said
    assert said.count("\n") == 1


def test_people_get_a_table(capacity, bench, history, rows, tmp_path, capsys):
    capacity("--no-sensitivity")
    given = ["capacity", "--traffic", str(history(rows())), "--fleet", str(tmp_path / "fleet.yaml")]
    assert main([*given, "--service-time", str(bench), "--no-sensitivity"]) == 0
    out = capsys.readouterr().out
    assert "GPUs = peak + loss + margin" in out
    assert "Assumed:" in out


def test_the_examples_can_be_read(examples):
    fleet = load_fleet(examples / "fleet.yaml")
    assert load_planning(examples / "capacity.yaml", fleet).growth == 1.25
    with pytest.raises(InputError, match="no such file"):
        load_planning(examples / "none.yaml", fleet)
