"""The benchmark measures what it says it measures."""

import json

import pytest
import torch
from PIL import Image

from pipeline.bench import bench, table
from pipeline.bench.ladder import Ladder, plan, use_solver
from pipeline.bench.measure import RungResult
from pipeline.bench.presets import Size, random_i2vgen_xl
from pipeline.bench.report import markdown, write
from pipeline.commands.cli import main
from pipeline.machine import PeakMemory
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.precision import choose
from pipeline.serve.sources import open_checkpoint

FAST = ["diffusers", "teacher", "precision", "context", "prepare", "solver", "block cache", "torchscript", "8 x 1"]


@pytest.fixture(scope="module")
def measured(teacher_folder, tmp_path_factory):
    """The ladder of a random teacher, but the compilers."""
    pipe = open_checkpoint(teacher_folder).pipe
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    result = bench(pipe, "random", "tiny", tmp_path_factory.mktemp("bench"), FAST, repeats=1)
    return result, pipe, weights


@pytest.fixture(scope="module")
def rungs(measured):
    return {rung.name: rung for rung in measured[0].rungs}


def test_every_rung_has_its_figures(rungs):
    assert list(rungs) == FAST
    for rung in rungs.values():
        assert rung.skipped is None
        assert rung.median_s > 0
        assert rung.pass_s > 0
        assert rung.flops > 0
        assert rung.peak_memory_mb is None or rung.peak_memory_mb > 50


def test_passes_are_steps_times_branches(rungs):
    passes = {name: rung.passes for name, rung in rungs.items()}
    assert passes["teacher"] == passes["context"] == passes["prepare"] == 2 * 3
    assert passes["diffusers"] == 2 * 2  # it knows two branches
    assert passes["solver"] == passes["torchscript"] == 15 * 3
    assert passes["8 x 1"] == 8


def test_ratios_are_of_the_same_run(rungs):
    teacher = rungs["teacher"]
    assert teacher.speedup == 1
    assert rungs["solver"].speedup == pytest.approx(teacher.median_s / rungs["solver"].median_s, rel=0.02)
    assert rungs["prepare"].pass_speedup == pytest.approx(rungs["diffusers"].pass_s / rungs["prepare"].pass_s, rel=0.02)


def test_each_rung_is_compared_with_the_one_that_it_stands_on(rungs):
    assert rungs["teacher"].psnr_to_previous_db is None
    assert rungs["context"].psnr_to_previous_db > 60
    assert rungs["prepare"].psnr_to_previous_db > 60
    assert rungs["torchscript"].psnr_to_previous_db > 60  # the solver's frames, and not the teacher's
    assert rungs["torchscript"].psnr_to_teacher_db == pytest.approx(rungs["solver"].psnr_to_teacher_db, abs=0.5)
    assert rungs["8 x 1"].psnr_to_teacher_db is None


def test_operations_fall_from_rung_to_rung_and_a_program_has_those_of_the_rung_below(rungs):
    assert rungs["teacher"].flops > rungs["context"].flops > rungs["prepare"].flops
    assert rungs["torchscript"].flops == rungs["solver"].flops
    assert rungs["block cache"].flops < rungs["solver"].flops


def test_a_precision_that_is_slower_here_says_so_and_is_not_kept(measured, rungs):
    kept = choose(measured[0].trials)["unet"] is not torch.float32
    assert rungs["precision"].kept == kept
    assert rungs["precision"].partial == ("no faster in a trial" in rungs["precision"].note) == (not kept)
    assert rungs["precision"].psnr_to_teacher_db > 20


def test_the_pipeline_is_left_as_it_was(measured):
    _, pipe, weights = measured
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())
    assert pipe.config.num_inference_steps == 2
    assert type(pipe.denoiser).__name__ == "PlainDenoiser"


def test_tables_name_every_rung_and_the_plot_is_a_picture(measured, tmp_path):
    result = measured[0]
    text = markdown(result)
    assert all(f"| {name} |" in text for name in FAST)
    assert len(table(result.to_dict()["rungs"])) == 1 + len(FAST)
    written = write(result, tmp_path)
    assert json.loads(written[0].read_text())["rungs"][1]["name"] == "teacher"
    with Image.open(written[2]) as plot:
        assert plot.width > 500


def test_a_rung_that_does_not_apply_is_left_out_with_its_reason_or_stops_the_run(one_level_pia, tmp_path):
    pia = one_level_pia
    pia.register_to_config(num_frames=2, num_inference_steps=1)
    result = bench(pia, "random", "tiny", tmp_path, ["diffusers", "teacher"], repeats=1)
    assert "i2vgen-xl family" in result.rungs[0].skipped
    assert result.rungs[1].median_s > 0
    assert "not applied: diffusers" in markdown(result)
    with pytest.raises(NotApplicable, match="i2vgen-xl family"):
        bench(pia, "random", "tiny", tmp_path, ["diffusers"], repeats=1, strict=True)


def test_a_rung_without_figures_is_a_line_of_the_table():
    lines = table([vars(RungResult("aot", "compiled", kept=False, skipped="aot: no compiler"))])
    assert lines[1].endswith("not applied: aot: no compiler")


def test_the_command_prints_one_document(teacher_folder, capsys):
    assert (
        main(["bench", "--model", str(teacher_folder), "--rungs", "teacher, context", "--repeats", "1", "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert {"machine", "versions", "preset", "rungs"} <= document.keys()
    keys = {"name", "median_s", "speedup", "peak_memory_mb", "flops", "psnr_to_previous_db"}
    assert all(keys <= rung.keys() for rung in document["rungs"])


def test_the_command_names_the_rungs_there_are(teacher_folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--model", str(teacher_folder), "--rungs", "warp drive"])
    assert ended.value.code == 2
    assert "'warp drive' is not one of teacher, precision" in capsys.readouterr().err


def test_the_published_size_is_built_from_widths():
    small = Size(
        unet=(8, 16), layers=1, head_dim=4, groups=4, vae=(8, 8, 8), context=32, text_layers=2, vision_layers=1,
        vision=80, frames=3, side=32,
    )  # fmt: skip
    pipe = random_i2vgen_xl(small)
    frames = pipe(Image.new("RGB", (32, 32)), "x", num_inference_steps=1, image_guidance_scale=1.5).frames[0]
    assert len(frames) == 3
    assert frames[0].size == (32, 32)


def test_plans_and_solvers_are_undone(i2vgen):
    scheduler, steps = i2vgen.scheduler, i2vgen.config.num_inference_steps
    changes = [use_solver(i2vgen, 7), plan(i2vgen, 3, guidance_scale=1.0)]
    assert (i2vgen.config.num_inference_steps, i2vgen.config.guidance_scale) == (3, 1.0)
    for change in reversed(changes):
        change.undo()
    assert i2vgen.scheduler is scheduler
    assert i2vgen.config.num_inference_steps == steps


def test_a_rung_that_fails_half_way_undoes_its_first_half(i2vgen, tmp_path):
    def refuse(_pipe):
        raise NotApplicable("second: no")

    ladder = Ladder(i2vgen, torch.bfloat16, torch.float32, keep_precision=False, folder=tmp_path)
    rung = next(r for r in ladder.rungs() if r.name == "prepare")
    broken = type(rung)(rung.name, rung.note, (*rung.changes, refuse))
    with pytest.raises(NotApplicable, match="second: no"):
        broken.enter(i2vgen)
    assert type(i2vgen.denoiser).__name__ == "PlainDenoiser"


def test_the_peak_of_memory_is_that_of_the_block():
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        torch.ones(64 * 2**20, dtype=torch.uint8).add_(1)
    if small.peak_mb is None or large.peak_mb is None:
        pytest.skip("this system does not tell a process's peak")
    assert 40 < large.peak_mb - small.peak_mb < 200
