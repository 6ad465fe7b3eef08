"""The notebooks themselves, on a random teacher that animates in a blink."""

import contextlib
import io
import json
import re

import jupytext
import nbformat
import pytest

from pipeline import ImageAnimationPipeline
from pipeline.commands.cli import main
from pipeline.distill.checkpoint import write_losses
from pipeline.distill.data import GeneratedSource
from pipeline.distill.trainer import Distiller, DistillSettings
from pipeline.judge.gates import GateFailed
from pipeline.runs.run import find_run, go_on
from pipeline.runs.settings import NOTEBOOKS
from pipeline.serve.store import resolve, verify

from .small_checkpoints import SMALL

# Kernels start slowly on a busy machine.
pytestmark = pytest.mark.timeout(1800)

STAGES = ("01_teacher", "02_optimize", "03_distill", "04_package")
BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def finished(teacher_folder, tmp_path_factory):
    """A run of the tiny preset, as the command line makes it."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["run", "--preset", "tiny", "--teacher", str(teacher_folder), "--runs", str(runs), "--json"]
    small = ["-p", "pictures", "2", "-p", "evaluation_clips", "2", "-p", "convergence_clips", "1"]
    small += ["-p", "reference_steps", "4", "-p", "convergence_steps", "2"]
    small += ["-p", "solver_steps", "2", "-p", "student_steps", "1"]
    small += ["-p", "updates", "2", "-p", "batch", "2", "-p", "requests", "1"]
    small += ["-p", "gates", "", "-p", "ablations", "shifted"]  # nothing is learned: nothing is asked
    small += ["-p", "judged_on", "generated"]  # as of the shipped teacher
    told, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
        status = main([*command, *small])
    assert status == 0, said.getvalue()
    return json.loads(told.getvalue()), find_run("latest", runs), said.getvalue()


def run_here(book, **parameters):
    """Run a notebook's cells in this process: a kernel of its own would import everything anew."""
    names = {}
    for cell in jupytext.read(NOTEBOOKS / f"{book}.ipynb").cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, book, "exec"), names)  # noqa: S102  # they are ours
            if "parameters" in cell.metadata.get("tags", []):
                names.update(parameters)


def test_the_preset_goes_from_a_checkpoint_to_a_model_in_the_store(finished):
    result, _, _ = finished
    teacher = result["metrics"]["stages"]["01_teacher"]
    assert teacher["sampling"] == {"steps": 2, "branches": 3, "passes": 6}
    assert teacher["baseline"]["requests"] == 2
    assert teacher["evaluation"]["clips"] == 2
    assert sum(teacher["baseline"]["parameters"].values()) > 10_000
    packaged = result["metrics"]["stages"]["04_package"]
    assert packaged["tag"] == result["model"]
    assert packaged["max_difference"] <= 2
    ways = packaged["ways"]
    assert {way["runtime"] for way in ways} == {"eager", "torchscript"}
    assert ways[0]["runtime"] == packaged["animator"]["runtime"]
    assert ways[0]["threads"] == packaged["animator"]["threads"]
    assert all(seconds > 0 for seconds in packaged["request_s"].values())
    optimised = result["metrics"]["stages"]["02_optimize"]
    rungs = {rung["name"]: rung for rung in optimised["bench"]["rungs"]}
    assert all(rungs[name]["median_s"] > 0 for name in ("diffusers", "teacher", "prepare", "solver", "torchscript"))
    assert rungs["teacher"]["flops"] > rungs["prepare"]["flops"]
    assert [point["steps"] for point in optimised["convergence"]] == [2, 4, 2, 2]
    assert optimised["source"].endswith("02_optimize/model")
    distilled = result["metrics"]["stages"]["03_distill"]
    assert distilled["passes"] == {"teacher": 6, "student": 1}
    assert len(distilled["losses"]) == 2
    assert distilled["comparison"]["undistilled_guided"]["passes"] == 3
    assert list(distilled["students"]) == ["1 x 1, shifted"]
    assert packaged["animator"]["scheduler"] == "LogSNRDPMSolverScheduler"
    assert packaged["animator"]["passes"] == 1
    assert packaged["animator"]["guidance_distilled"] is True
    assert packaged["animator"]["guidance_scale"] == 2.0
    name, path = resolve(result["model"])
    info = verify(path)
    assert name == result["model"]
    assert info.metrics["motion_accuracy"] == distilled["evaluation"]["motion_accuracy"]
    assert "held-out clips, seed 0" in (path / "README.md").read_text()


def test_its_pages_stand_alone_and_show_clips(finished):
    _, folder, said = finished
    for page in folder.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", text), page
    assert (folder / "01_teacher.html").read_text().count("data:video/webm") == 2
    assert "Traceback" not in said


def test_what_libraries_say_to_developers_is_in_no_notebook(finished):
    _, folder, _ = finished
    for path in folder.glob("*.ipynb"):
        outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        assert [o["text"] for o in outputs if o.get("name") == "stderr"] == []
    assert not list(folder.glob("*.log"))


def test_a_resume_has_nothing_to_do(finished, capsys):
    result, folder, _ = finished
    assert go_on(folder).model == result["model"]
    assert capsys.readouterr().err.count("done before") == 4


def test_a_student_below_its_gates_is_not_packaged(finished, tmp_path):
    _, folder, _ = finished
    strict = tmp_path / "gates.yaml"
    strict.write_text("steps: {1: {psnr_to_teacher_db: 99}}")
    given = {"checkpoint": str(folder / "02_optimize" / "model"), "run_folder": str(tmp_path), "gates": str(strict)}
    given |= {"student_steps": 1, "updates": 1, "batch": 1, "pictures": 1, "evaluation_clips": 1}
    given |= {"judged_on": "generated"}
    with pytest.raises(GateFailed, match="psnr_to_teacher_db"):
        run_here("03_distill", **given)
    assert (tmp_path / "03_distill" / "model").is_dir()
    assert not (tmp_path / "03_distill" / "result.json").exists()


@pytest.fixture(scope="module")
def wan_run(tmp_path_factory):
    """The notebooks on a small Wan of two experts, in this process, with a student that was trained elsewhere."""
    folder = tmp_path_factory.mktemp("wan")
    SMALL["wan-2.2-a14b"]().save_pretrained(folder / "teacher")
    pipe = ImageAnimationPipeline.from_pretrained(folder / "teacher")
    settings = DistillSettings(student_steps=2, updates=2, lora_rank=2)
    side = min(pipe.default_size)
    distiller = Distiller(pipe, GeneratedSource(side, pipe.config.num_frames, 1), settings, folder / "trained")
    student = distiller.train()
    student.save_pretrained(folder / "trained" / "student")
    write_losses(folder / "trained", distiller.losses)
    at = {"run_folder": str(folder / "run")}
    run_here("01_teacher", teacher=str(folder / "teacher"), pictures=1, evaluation_clips=2, **at)
    rungs = {"rungs": "teacher,solver", "convergence_clips": 1, "convergence_steps": "2", "reference_steps": 4}
    run_here("02_optimize", evaluation_clips=0, **rungs, **at)
    trained = {"trained": str(folder / "trained" / "student"), "pictures": 1, "evaluation_clips": 2, "diversity": 2}
    with pytest.raises(GateFailed, match="judged on 2 clips"):
        run_here("03_distill", **trained, **at)  # the project's own limits, which random weights fall short of
    run_here("03_distill", gates="", fewer_steps="3:1", batch=1, **trained, **at)
    run_here("04_package", requests=1, **at)
    return {name: json.loads((folder / "run" / name / "result.json").read_text()) for name in STAGES}


@pytest.mark.slow
def test_checkpoints_that_are_no_toy_are_shown_and_judged_on_photographs(wan_run):
    teacher, optimised, distilled, packaged = (wan_run[name]["metrics"] for name in STAGES)
    assert [figure["clip"] for figure in wan_run["01_teacher"]["figures"] if figure["clip"]] == ["astronaut.webm"]
    assert teacher["evaluation"]["clips"] == 2
    assert teacher["evaluation"]["own_picture_share"] is not None
    assert teacher["evaluation"]["motion_accuracy"] is None
    rows = {row["name"] for row in wan_run["01_teacher"]["rows"]}
    assert {"Motion", "Drift of brightness", "Nearer to its own picture than to any other"} <= rows
    assert {point["sampler"] for point in optimised["convergence"]} >= {"Euler", "UniPC"}
    assert distilled["passes"] == {"teacher": 16, "student": 2}
    assert len(distilled["losses"]) == 2
    assert distilled["evaluation"]["diversity_of_teacher"] is not None
    assert list(distilled["students"]) == ["3 x 1"]
    assert "students" in {(figure["picture"] or "").removesuffix(".png") for figure in wan_run["03_distill"]["figures"]}
    assert packaged["animator"]["passes"] == 2
    assert packaged["max_difference"] <= 2


@pytest.mark.slow
def test_the_package_notebook_runs_by_itself(teacher_folder, tmp_path):
    run_here("04_package", checkpoint=str(teacher_folder), run_folder=str(tmp_path), requests=1)
    result = json.loads((tmp_path / "04_package" / "result.json").read_text())
    assert result["model"].startswith("animator:")


@pytest.mark.parametrize("book", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_say_the_same_and_hold_no_output(book):
    notebook, script = jupytext.read(book), jupytext.read(book.with_suffix(".py"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in script.cells]
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
