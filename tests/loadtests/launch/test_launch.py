"""`python -m loadtests launch`, with evidence that was gathered before."""

import json
import shutil
from pathlib import Path

import papermill
import pytest
import yaml

from loadtests.cli import main
from loadtests.launch.evidence import Line, Mark, reasons, verdict

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
BOOK = Path(__file__).parents[3] / "notebooks" / "06_launch.ipynb"
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "cpu" / "ladder" / "bench.json"
GPUS = {"us-east": 4, "us-west": 4, "eu-west": 4}


def scenario(**more):
    """One scenario of a drill, as `python -m loadtests run --json` has it."""
    finding = {"kind": "failed", "text": "0.5 % fail at most", "verdict": "passed", "why": "0 of 700"}
    content = {"verdict": "passed", "exit_status": 0, "void": [], "objectives": [finding], "stand_ins": True}
    fleet = {"regions": {name: {"gpus": gpus} for name, gpus in GPUS.items()}}
    return content | {"folder": "drill/steady", "fleet": fleet} | more


@pytest.fixture
def launch(tmp_path, capsys):
    """Runs the command; (exit status, document, what was said)."""
    for name in ("small-fleet.yaml", "generated-small-traffic.csv", "small-capacity.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    content = yaml.safe_load((EXAMPLES / "launch.yaml").read_text())
    content["capacity"]["benchmark"] = str(BENCHMARK)
    content["capacity"]["simulated"] = False
    content["model"]["runs"] = "runs"
    content["load_tests"], content["fault_drill"] = ["steady"], ["region-loss"]

    def run(drill=None, gates=True, fleet_content=None, more=(), **changes):
        (tmp_path / "launch.yaml").write_text(yaml.safe_dump(content | changes))
        metrics = tmp_path / "runs" / "20260101-000000-tiny" / "metrics.json"
        metrics.parent.mkdir(parents=True, exist_ok=True)
        gate = {"name": "psnr_to_teacher_db", "value": 37.0 if gates else 20.0, "limit": 30.0, "passed": gates}
        stages = {
            "03_distill": {"gates": [gate], "evaluation": {"clips": 12}},
            "04_package": {"tag": "animator:test", "max_difference": 0},
        }
        metrics.write_text(json.dumps({"stages": stages}))
        if fleet_content is not None:
            (tmp_path / "small-fleet.yaml").write_text(yaml.safe_dump(fleet_content))
        found = {"steady": scenario(), "region-loss": scenario()} if drill is None else drill
        (tmp_path / "drill.json").write_text(json.dumps({"planted": None, "scenarios": found}))
        arguments = ["--file", str(tmp_path / "launch.yaml"), "--out", str(tmp_path / "out")]
        status = main(["launch", *arguments, "--drill", str(tmp_path / "drill.json"), "--json", *more])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return run


def test_a_launch_may_go_ahead_when_all_was_shown(launch, tmp_path):
    status, found, _ = launch()
    assert (status, found["verdict"], found["reasons"]) == (0, "go", [])
    assert {line["area"] for line in found["lines"]} == {"model", "capacity", "load tests", "fault drill"}
    page = (tmp_path / "out" / "launch.html").read_text()
    assert "GO" in page
    assert "stand-ins" in page
    assert json.loads((tmp_path / "out" / "launch.json").read_text()) == found
    assert (tmp_path / "out" / "capacity.json").is_file()


def test_a_missed_objective_is_no_go_and_says_why(launch):
    missed = {"kind": "failed", "text": "0.5 % fail at most", "verdict": "failed", "why": "9 of 700 failed"}
    status, found, _ = launch({"steady": scenario(verdict="failed", objectives=[missed]), "region-loss": scenario()})
    assert (status, found["verdict"]) == (1, "no-go")
    assert found["reasons"] == ["steady: 0.5 % fail at most: 9 of 700 failed"]


@pytest.mark.parametrize(
    ("drill", "why"),
    [
        ({"steady": scenario(verdict="void", void=["12 % left late"]), "region-loss": scenario()}, "12 % left late"),
        ({"steady": scenario()}, "was not run"),
        ({"steady": scenario(fleet={"regions": {"a": {"gpus": 1}}}), "region-loss": scenario()}, "another fleet"),
        ({"steady": scenario(objectives=[]), "region-loss": scenario()}, "no objective could be judged"),
    ],
)
def test_what_was_not_shown_is_no_go(launch, drill, why):
    status, found, _ = launch(drill)
    assert (status, found["verdict"]) == (1, "no-go")
    assert why in found["reasons"][0]
    assert any(line["mark"] == "not shown" for line in found["lines"])


def test_a_missed_gate_is_no_go(launch):
    status, found, _ = launch(gates=False)
    assert status == 1
    assert found["reasons"] == ["gate psnr_to_teacher_db of animator:test: 20 for a limit of 30, 12 clips"]


def test_too_few_gpus_for_the_traffic_and_a_slow_model_are_no_go(launch):
    fleet = yaml.safe_load((EXAMPLES / "small-fleet.yaml").read_text())
    fleet["regions"]["eu-west"]["gpus"] = 2
    fleet["service_time_s"] = 0.3
    status, found, _ = launch(fleet_content=fleet)
    assert status == 1
    assert any("eu-west has the GPUs" in reason for reason in found["reasons"])
    assert any("a request takes no longer than the fleet's 0.3 s" in reason for reason in found["reasons"])


def test_wrong_use_is_one_line_before_anything_is_run(launch, tmp_path):
    for changes, said in (
        ({"load_tests": ["stedy"]}, "steady"),
        ({"fleet": "nowhere.yaml"}, "nowhere.yaml"),
        ({"capacity": {"traffic": "x.csv", "benchmark": str(BENCHMARK), "slower": 2}}, "capacity.slower"),
        ({"fault_dril": ["herd"]}, "fault_drill"),
    ):
        status, found, err = launch(**changes)
        assert (status, found) == (2, None)
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err
    status, _, err = launch(more=["--run", str(tmp_path)])
    assert status == 2
    assert "metrics.json is no result of a run that packaged a model" in err


def test_failures_of_the_busiest_hour_are_simulated_unless_told_otherwise(launch):
    settings = yaml.safe_load((EXAMPLES / "launch.yaml").read_text())["capacity"] | {"benchmark": str(BENCHMARK)}
    _, found, _ = launch(capacity=settings)
    assert any("with its retries 0.10% fail at most" in line["claim"] for line in found["lines"])


def test_the_notebook_tells_the_same(launch, tmp_path):
    launch()
    shares = {"at_s": 0.0, "source": "us-east", "served": {"us-east": 9, "us-west": 1}, "failed": 1}
    series = [shares, shares | {"at_s": 1.0}]
    (tmp_path / "steady").mkdir()
    (tmp_path / "steady" / "verdict.json").write_text(json.dumps({"verdict": "passed", "series": series}))
    given = {"file": str(tmp_path / "launch.yaml"), "drill": str(tmp_path / "drill.json"), "run_folder": str(tmp_path)}
    papermill.execute_notebook(BOOK, tmp_path / "out.ipynb", given, progress_bar=False)
    result = json.loads((tmp_path / "06_launch" / "result.json").read_text())
    assert result["summary"] == "GO: small fleet."
    assert [figure["picture"] for figure in result["figures"]] == ["scenarios.png"]


def test_a_launch_is_a_go_only_when_every_line_is_one():
    def line(mark):
        return Line("model", "it is good", mark, "it was looked at", "a file")

    assert verdict([line(Mark.GO)] * 3) == "go"
    assert verdict([]) == "no-go"
    assert verdict([line(Mark.GO), line(Mark.NOT_SHOWN)]) == "no-go"
    mixed = [line(Mark.NOT_SHOWN), Line("capacity", "enough", Mark.NO_GO, "2 for 4", "a file")]
    assert reasons(mixed) == ["enough: 2 for 4", "it is good: it was looked at"]
