"""The runner, on notebooks that take no time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from pipeline.commands.cli import main
from pipeline.runs.notebooks import typed
from pipeline.runs.state import RunState

from ..waiting import until
from .conftest import files_of_at_most

# They write their result by hand: importing the package would cost each kernel a second.
FINISH = """
import json, os, time
from pathlib import Path
beside = Path(run_folder).parent
def finish(stage, **metrics):
    (Path(run_folder) / stage).mkdir(exist_ok=True)
    model = metrics.pop("model", None)
    result = {"stage": stage, "title": stage.title(), "metrics": metrics, "model": model}
    (Path(run_folder) / stage / "result.json").write_text(json.dumps(result))
"""
# Counts its executions in a file beside the run.
FIRST = (
    FINISH
    + """
with (beside / "first.count").open("a") as count:
    count.write("x")
finish("first", number=number)
"""
)
SECOND = (
    FINISH
    + """
if (beside / "break").exists():
    raise RuntimeError("no luck\\ntoday")
if (beside / "die").exists():
    os._exit(1)
if (beside / "skip").exists():
    class StageSkipped(Exception):
        pass
    raise StageSkipped("a checkpoint of another kind")
if (beside / "wait").exists():
    (beside / "waiting").touch()
    time.sleep(1000)
number = json.loads((Path(run_folder) / "first" / "result.json").read_text())["metrics"]["number"]
finish("second", product=number * factor)
"""
)


def write_notebook(path: Path, parameters: str, source: str) -> None:
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    book.cells = [cell, nbformat.v4.new_code_cell(source)]
    nbformat.write(book, path)


@pytest.fixture
def preset(tmp_path) -> Path:
    write_notebook(tmp_path / "first.ipynb", 'run_folder = ""\nnumber = 3\nteacher = ""', FIRST)
    write_notebook(tmp_path / "second.ipynb", 'run_folder = ""\nfactor = 2.0', SECOND)
    path = tmp_path / "own.yaml"
    path.write_text(
        "title: Two steps\nnotebooks: .\nstages: [{notebook: first}, {notebook: second, parameters: {factor: 4}}]\n"
    )
    return path


@pytest.fixture
def run(preset, teacher_folder, tmp_path):
    """Runs the command line in this process; gives its exit status."""

    def call(*arguments: str) -> int:
        if "--resume" in arguments:
            return main(["run", "--runs", str(tmp_path / "runs"), *arguments])
        start = ["--preset", str(preset), "--teacher", str(teacher_folder)]
        return main(["run", *start, "--runs", str(tmp_path / "runs"), *arguments])

    return call


def executions(tmp_path: Path) -> int:
    return len((tmp_path / "runs" / "first.count").read_text())


def test_notebooks_run_in_order_and_hand_results_on(run, tmp_path, capsys):
    assert run("--json", "-p", "number", "5", "-p", "factor", "3") == 0  # a whole number where a share is wanted
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["metrics"]["stages"] == {"first": {"number": 5}, "second": {"product": 15}}
    folder = Path(result["run"])
    assert folder.name.endswith("-own")
    kept = {path.name for path in folder.iterdir()}
    assert {"first.ipynb", "second.html", "report.html", "metrics.json", "state.json"} <= kept
    assert json.loads((folder / "metrics.json").read_text()) == result["metrics"]
    assert "[1/2] first  done after" in said.err
    assert (tmp_path / "runs" / "latest").resolve() == folder


def test_resume_keeps_what_is_done_and_repeats_what_changed(run, preset, tmp_path, capsys):
    preset.write_text("title: One step\nnotebooks: .\nstages: [{notebook: first}]\n")
    assert run() == 0
    folder = (tmp_path / "runs" / "latest").resolve()
    assert run("--resume", str(folder)) == 0
    assert "first  done before" in capsys.readouterr().err
    assert executions(tmp_path) == 1

    (folder / "first" / "result.json").unlink()
    assert run("--resume", folder.name) == 0
    assert executions(tmp_path) == 2

    write_notebook(tmp_path / "first.ipynb", 'run_folder = ""\nnumber = 3\nteacher = ""', FIRST + "print(1)")
    assert run("--resume", "latest") == 0
    assert executions(tmp_path) == 3

    # A model that is no longer in the store is made again.
    packages = FIRST.replace("number=number", "number=number, model='animator:gone'")
    write_notebook(tmp_path / "first.ipynb", 'run_folder = ""\nnumber = 3\nteacher = ""', packages)
    for times in (4, 5):
        assert run("--resume", "latest") == 0
        assert executions(tmp_path) == times


def test_a_stage_is_run_alone_and_each_step_of_a_workflow_is_one_command(run, tmp_path, capsys):
    named = ("--name", "nightly-7", "-p", "number", "5")
    assert run(*named, "--only", "first") == 0
    folder = tmp_path / "runs" / "nightly-7"
    assert not (folder / "second").exists()
    assert [stage.status for stage in RunState.read(folder).stages] == ["done", "waiting"]
    assert run(*named, "--only", "second") == 0
    assert json.loads((folder / "second" / "result.json").read_text())["metrics"] == {"product": 20}
    assert executions(tmp_path) == 1
    assert "first  done before" not in capsys.readouterr().err  # a stage that is not asked for is not told of
    assert run("--resume", "nightly-7") == 0
    assert executions(tmp_path) == 1


def test_until_a_stage_the_rest_is_left_for_later(run, tmp_path):
    assert run("--until", "first") == 0
    folder = (tmp_path / "runs" / "latest").resolve()
    assert [stage.status for stage in RunState.read(folder).stages] == ["done", "waiting"]
    assert run("--resume", "latest", "--until", "second") == 0
    assert [stage.status for stage in RunState.read(folder).stages] == ["done", "done"]


def test_a_stage_without_those_before_it_says_which_to_run(run, tmp_path, capsys):
    assert run("--only", "second") == 1
    said = capsys.readouterr().err
    assert "error: second: a new run has nothing for it to go on from; run first first (--until second" in said
    assert not (tmp_path / "runs").exists()

    assert run("--until", "first") == 0
    folder = (tmp_path / "runs" / "latest").resolve()
    (folder / "first" / "result.json").unlink()
    assert run("--resume", "latest", "--only", "second") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "error: second: needs first, and its inputs or files have changed; run it first: "
        f"python -m pipeline run --resume {folder} --only first"
    )
    assert executions(tmp_path) == 1


@pytest.mark.parametrize("option", ["--only", "--until"])
def test_a_stage_that_there_is_not_is_wrong_use(run, tmp_path, capsys, option):
    assert run(option, "third") == 2
    assert f"error: {option}: there is no stage 'third'; the preset has first, second" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_name_is_of_one_run_alone(run, tmp_path, capsys):
    assert run("--name", "one", "--until", "first") == 0
    assert run("--name", "one", "-p", "number", "5") == 2
    said = capsys.readouterr().err
    assert "error: --name: one was started with parameters {}, and not {'number': 5}" in said
    for name in ("../one", "latest", ".one"):
        assert run("--name", name) == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == ["latest", "one"]


def test_a_failed_stage_is_two_lines_and_a_resume_goes_on_from_there(run, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "break").touch()
    assert run() == 1
    folder = (tmp_path / "runs" / "latest").resolve()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "error: second: cell 3: RuntimeError: no luck today"
    assert str(folder / "second.ipynb") in lines[-1]
    assert f"--resume {folder}" in lines[-1]
    assert "no luck today" in (folder / "report.html").read_text()
    assert "RuntimeError" in (folder / "second.ipynb").read_text()

    (tmp_path / "runs" / "break").unlink()
    assert run("--resume", str(folder)) == 0
    assert executions(tmp_path) == 1


def test_a_stage_with_nothing_to_do_is_one_line_and_the_run_is_whole(run, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "skip").touch()
    assert run() == 0
    assert "second  skipped: a checkpoint of another kind" in capsys.readouterr().err
    assert run("--resume", "latest") == 0
    assert "second  skipped before: a checkpoint of another kind" in capsys.readouterr().err


def test_a_kernel_that_dies_is_said_so(run, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "die").touch()
    assert run() == 1
    assert "kernel died" in capsys.readouterr().err


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGINT),
        pytest.param((signal.SIGTERM,), marks=pytest.mark.slow),
        pytest.param((signal.SIGINT, signal.SIGTERM, signal.SIGINT), marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_ends_the_kernel_in_one_line_and_leaves_a_run_that_resumes(
    run, preset, teacher_folder, tmp_path, capsys, numbers
):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "wait").touch()
    command = ["run", "--preset", str(preset), "--teacher", str(teacher_folder), "--runs", str(runs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command],
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background have inherited an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no other threads yet
    )
    until((runs / "waiting").exists, limit_s=240)
    kernels = children(process.pid)
    assert kernels
    # Nothing else may go on in a run that is still going.
    assert run("--resume", "latest") == 1
    assert "another process is at work on this run" in capsys.readouterr().err
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)  # two signals at once are one
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    folder = (runs / "latest").resolve()
    last = said[said.index("[2/2] second  started") :].splitlines()[1:]
    assert last[-1].startswith("interrupted")
    assert [line for line in last[:-1] if not line.startswith("[2/2] second  interrupted after")] == []
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in kernels), limit_s=240)
    assert [stage.status for stage in RunState.read(folder).stages] == ["done", "interrupted"]
    if len(numbers) == 1:
        assert last[-1] == f"interrupted; go on with: python -m pipeline run --resume {folder}"

    (runs / "wait").unlink()
    assert run("--resume", "latest") == 0
    assert executions(tmp_path) == 1


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-p", "numbr", "5"], "parameter numbr: no notebook of this preset has it; they have factor, number"),
        (["-p", "number", "many"], "parameter number: 'many' is str; first wants int, such as 3"),
        (["-p", "number", "true"], "parameter number: 'true' is str; first wants int"),
        (["-p", "number", "1:30"], "parameter number: '1:30' is str; first wants int"),
        (["-p", "run_folder", "x"], "use --runs and --teacher"),
    ],
)
def test_a_parameter_that_no_notebook_has_is_wrong_use_before_any_work(run, tmp_path, capsys, arguments, text):
    assert run(*arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_one_line_and_the_run_can_go_on(run, preset, capsys):
    preset.write_text("title: One step\nnotebooks: .\nstages: [{notebook: first}]\n")
    with files_of_at_most(2000):  # enough for the state, not for a notebook that has been executed
        assert run() == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(("error: ", "see "))
    assert run("--resume", "latest") == 0


def test_braces_in_a_path_are_part_of_its_name(preset, teacher_folder, tmp_path):
    preset.write_text("title: One step\nnotebooks: .\nstages: [{notebook: first}]\n")
    folder = tmp_path / "{number} of {all}"
    folder.mkdir()
    for path in (preset, tmp_path / "first.ipynb"):
        path.rename(folder / path.name)
    given = ["--preset", str(folder / "own.yaml"), "--teacher", str(teacher_folder), "--runs", str(folder / "{runs}")]
    assert main(["run", *given]) == 0
    assert (folder / "{runs}" / "latest" / "report.html").is_file()


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("", "no", "no"),
        ("", "1", "1"),
        ("", "#x", "#x"),
        ("", "null", "null"),
        (3, "5", 5),
        (3, "1:30", "1:30"),
        (0.5, "3e-4", 3e-4),
        (0.5, "2", 2.0),
        (True, "no", False),
        (True, "off", False),
        (None, "[1, 2]", [1, 2]),
    ],
)
def test_a_parameter_is_read_by_the_type_of_the_notebooks_own_value(default, text, value):
    assert typed({"x": text}, [{"y": 1}, {"x": default}]) == {"x": value}


def test_a_parameter_that_one_notebook_wants_whole_is_whole():
    assert typed({"x": "2"}, [{"x": 0.5}, {"x": 3}]) == {"x": 2}
    assert typed({"x": "2.5", "y": 7}, [{"x": 0.5}, {"x": 3}]) == {"x": "2.5", "y": 7}


def test_a_teacher_that_is_not_there_is_refused_before_any_work(run, tmp_path, capsys):
    assert run("--teacher", str(tmp_path)) == 1
    assert "no model_index.json there" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_is_no_run_cannot_be_resumed(run, tmp_path, capsys):
    assert run("--resume", "nothing") == 1
    assert "no such run" in capsys.readouterr().err
    (tmp_path / "state.json").write_text("{")
    assert run("--resume", str(tmp_path)) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_hold_runs_is_named(run, tmp_path, capsys):
    (tmp_path / "runs").mkdir(mode=0o500)
    assert run() == 1
    assert "cannot hold a run" in capsys.readouterr().err
