"""What a student learns and what it is, and the command `distill`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import ImageAnimationPipeline
from pipeline.commands.cli import main
from pipeline.distill.data import GeneratedSource
from pipeline.distill.passes import conditions
from pipeline.distill.student import teacher_grid
from pipeline.distill.trainer import Distiller, DistillSettings
from pipeline.serve.store import describe

SETTINGS = DistillSettings(student_steps=2, updates=4, warmup=2, checkpoint_every=2)
SOURCE = GeneratedSource(32, frames=3, batch=2)


def adapt(pipe: ImageAnimationPipeline) -> ImageAnimationPipeline:
    """Make it a teacher of 4 steps."""
    pipe.register_to_config(num_inference_steps=4, guidance_scale=2.0, num_frames=3, fps=8)
    if pipe.family.name == "i2vgen-xl":
        pipe.register_to_config(image_guidance_scale=1.5, image_latents_fill="repeat")
    return pipe


@pytest.fixture
def teacher(one_level_i2vgen) -> ImageAnimationPipeline:
    return adapt(one_level_i2vgen)


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# ------------------------------------------------------------------ what is learned


def test_training_goes_on_from_a_student_that_there_is(teacher, tmp_path):
    student = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "first").train()
    student.save_pretrained(tmp_path / "student")
    further = Distiller(teacher, SOURCE, replace(SETTINGS, start=str(tmp_path / "student")), tmp_path / "further")
    begins = further.student.networks["unet"].state_dict()
    assert farthest(begins, student.unet.state_dict()) == 0
    assert farthest(begins, teacher.unet.state_dict()) > 1e-4
    assert farthest(further.train().unet.state_dict(), student.unet.state_dict()) > 1e-4


def test_a_student_of_another_shape_is_no_start(teacher, one_level_pia, tmp_path):
    one_level_pia.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"^start: .* has other weights than a student of this teacher$"):
        Distiller(teacher, SOURCE, replace(SETTINGS, start=str(tmp_path / "other")), tmp_path)


def gradients(distiller: Distiller) -> list[torch.Tensor]:
    distiller.loss(SOURCE[0], 3).backward()
    assert all(p.grad is not None for p in distiller.trained)  # DDP would wait for those that have none
    return [p.grad for p in distiller.trained]


def test_recomputed_activations_give_the_same_gradients_and_leave_no_trace(teacher, tmp_path):
    plain = gradients(Distiller(teacher, SOURCE, SETTINGS, tmp_path))
    distiller = Distiller(teacher, SOURCE, replace(SETTINGS, gradient_checkpointing=True), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(distiller), strict=True))
    for unet in (distiller.finished().unet, teacher.unet):
        assert not any("forward" in vars(module) for module in unet.modules())


@pytest.mark.parametrize(
    ("own", "student", "asked", "taught"), [(32, 8, 0, 32), (50, 8, 0, 50), (50, 8, 16, 16), (4, 4, 0, 4)]
)
def test_a_teacher_teaches_with_its_own_steps_or_as_many_as_are_asked_for(i2vgen, own, student, asked, taught):
    i2vgen.register_to_config(num_inference_steps=own)
    grid = teacher_grid(i2vgen, student, teacher_steps=asked)
    assert (grid.teacher_steps, grid.student_steps) == (taught, student)
    assert i2vgen.config.num_inference_steps == own


@pytest.mark.parametrize("family", ["i2vgen", "pia"])
def test_lora_trains_additions_alone_and_is_merged_at_the_end(request, family, tmp_path):
    teacher = adapt(request.getfixturevalue(f"one_level_{family}"))
    settings = replace(SETTINGS, lora_rank=2, updates=2, learning_rate=0.05)
    distiller = Distiller(teacher, SOURCE, settings, tmp_path)
    assert all("lora_" in name for name in distiller._names)
    before = {n: p.clone() for n, p in distiller.student.named_parameters() if not p.requires_grad}
    student = distiller.train()
    after = dict(distiller.student.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert student.unet.state_dict().keys() == teacher.unet.state_dict().keys()
    assert farthest(student.unet.state_dict(), teacher.unet.state_dict()) > 1e-4
    assert not hasattr(student.unet, "peft_config")

    distiller.averaged.copy_to(distiller.trained)
    with torch.no_grad():
        grid = [side // teacher.family.size_step(teacher.parts) for side in teacher.default_size]
        _, told = conditions(teacher, SOURCE[0], distiller.objective.guidance, torch.Generator().manual_seed(0))
        z, t = torch.randn(2, 4, 3, *grid, generator=torch.Generator().manual_seed(1)), torch.tensor([900, 500])
        merged = teacher.family.predict(student.unet, z, t, told)
        with distiller.objective.attached():
            unmerged = teacher.family.predict(distiller.student.networks["unet"], z, t, told)
    assert torch.allclose(merged, unmerged, atol=1e-5)


def test_half_precision_is_the_students_alone_and_ends_with_training(teacher, tmp_path):
    distiller = Distiller(teacher, SOURCE, replace(SETTINGS, mixed_precision="bf16"), tmp_path)
    student = distiller.finished()
    seen: dict[str, set[torch.dtype]] = {"teacher": set(), "student": set(), "finished": set()}
    unets = {"teacher": teacher.unet, "student": distiller.student.networks["unet"], "finished": student.unet}
    hooks = [
        unet.conv_in.register_forward_hook(lambda _m, _i, out, name=name: seen[name].add(out.dtype))
        for name, unet in unets.items()
    ]
    assert distiller.loss(SOURCE[0], 0).dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients(distiller))
    animate(student)
    for hook in hooks:
        hook.remove()
    assert seen == {"teacher": {torch.float32}, "student": {torch.bfloat16}, "finished": {torch.float32}}


def animate(pipe: ImageAnimationPipeline) -> torch.Tensor:
    return pipe(
        SOURCE[0].pictures[0], "a red ball", generator=torch.Generator().manual_seed(0), output_type="latent"
    ).frames


def test_a_student_of_the_pia_family_learns(one_level_pia, tmp_path):
    distiller = Distiller(adapt(one_level_pia), SOURCE, replace(SETTINGS, updates=1), tmp_path)
    gradients(distiller)
    student = distiller.train()
    assert type(student.unet) is type(one_level_pia.unet)
    assert torch.isfinite(animate(student)).all()


def test_the_loss_falls(one_level_pia, tmp_path):
    teacher = adapt(one_level_pia)
    settings = replace(SETTINGS, student_steps=1, updates=16, learning_rate=3e-4, checkpoint_every=100)
    distiller = Distiller(teacher, SOURCE, settings, tmp_path)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(distiller.loss(SOURCE[number], number)) for number in range(4))

    before = loss()
    distiller.train()
    assert loss() < 0.8 * before


def test_a_saved_student_makes_one_pass_a_step_on_its_own_grid(teacher, tmp_path):
    distiller = Distiller(teacher, SOURCE, replace(SETTINGS, updates=1), tmp_path)
    distiller.train().save_pretrained(tmp_path / "student")
    student = ImageAnimationPipeline.from_pretrained(tmp_path / "student")
    student.set_progress_bar_config(disable=True)
    passes = []
    student.unet.register_forward_pre_hook(lambda _module, args: passes.append((len(args[0]), int(args[1]))))
    assert torch.isfinite(animate(student)).all()
    assert passes == [(1, t) for t in distiller.grid.student_timesteps]
    info = describe(student, "tiny", {})
    assert (info.steps, info.passes) == (2, 2)
    assert info.guidance_distilled
    assert (info.guidance_scale, info.image_guidance_scale) == (2.0, 1.5)


# ------------------------------------------------------------------ the command


def command(teacher: Path, out: Path, *more: str) -> list[str]:
    settings = ("-p", "student_steps", "1", "-p", "updates", "2", "-p", "mixed_precision", "no")
    return ["distill", "--teacher", str(teacher), "--out", str(out), "--batch", "1", *settings, *more]


def test_the_command_makes_a_student_and_goes_on_where_it_stopped(teacher_folder, tmp_path, capsys):
    assert main(command(teacher_folder, tmp_path, "--minutes", "0")) == 0
    assert "1 of 2 updates; the same command goes on" in capsys.readouterr().out
    assert main([*command(teacher_folder, tmp_path), "--json"]) == 0
    told, said = capsys.readouterr()
    result = json.loads(told)
    assert (result["updates"], result["steps"], result["guidance_scale"]) == (2, 1, 2.0)
    assert "update 2 of 2, loss" in said
    rows = list(csv.DictReader((tmp_path / "losses.csv").read_text().splitlines()))
    assert [row["update"] for row in rows] == ["1", "2"]
    assert json.loads((tmp_path / "settings.json").read_text())["student_steps"] == 1
    assert torch.isfinite(animate(ImageAnimationPipeline.from_pretrained(tmp_path / "student"))).all()
    left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {"checkpoint", "losses.csv", "settings.json", "student"}


def test_sample_grids_are_drawn_and_change_nothing_of_the_training(teacher_folder, tmp_path):
    drawn, plain = tmp_path / "drawn", tmp_path / "plain"
    assert main(command(teacher_folder, drawn, "-p", "sample_every", "1")) == 0
    assert main(command(teacher_folder, plain)) == 0
    grids = sorted((drawn / "samples").iterdir())
    assert [grid.name for grid in grids] == ["update-000001.png", "update-000002.png"]
    before, after = (np.asarray(Image.open(grid)) for grid in grids)
    height = before.shape[0] // 2  # one example: the teacher's clip above, the student's below
    assert np.array_equal(before[:height], after[:height])
    assert not np.array_equal(before[height:], after[height:])
    name = "student/unet/diffusion_pytorch_model.safetensors"
    assert (drawn / name).read_bytes() == (plain / name).read_bytes()


def test_the_command_learns_from_a_folder(teacher_folder, picture, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    picture().save(data / "one.png")
    (data / "one.txt").write_text("a ball")
    assert main(command(teacher_folder, tmp_path / "out", "--data", str(data))) == 0


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (("-p", "steps", "3"), 2, "-p steps: not a setting of distill"),
        (("-p", "updates", "many"), 2, "-p updates: 'many' is not of type int"),
        (("-p", "updates", "0"), 2, "-p updates: 0 is below 1"),
        (("-p", "guidance_range", "4"), 2, "-p guidance_range: '4' is not of type tuple"),
        (("-p", "guidance_range", "[3, 4]"), 2, "-p guidance_range: [3.0, 4.0] leaves out 2, the teacher's own scale"),
        (("-p", "trajectory", "sideways"), 2, "'sideways' is not one of forward, backward"),
        (("-p", "student_steps", "3"), 1, "student_steps: 3 is not within 1 and the teacher's 2"),
        (("--data", "nowhere"), 1, "there is no such folder"),
        (("--teacher", "./nowhere"), 1, "no model_index.json there"),
    ],
)
def test_the_command_says_on_one_line_what_is_wrong(teacher_folder, tmp_path, capsys, more, status, words):
    try:
        found = main(command(teacher_folder, tmp_path, *more))
    except SystemExit as error:
        found = error.code
    said = capsys.readouterr().err
    assert found == status
    assert words in said
    assert "Traceback" not in said


def test_a_large_teacher_needs_data_of_its_own(teacher_folder, tmp_path, capsys):
    index = ImageAnimationPipeline.from_pretrained(teacher_folder)
    index.unet.register_to_config(sample_size=[8, 16])
    index.save_pretrained(tmp_path / "wide")
    with pytest.raises(SystemExit):
        main(command(tmp_path / "wide", tmp_path / "out"))
    assert "--data: is needed for a teacher of 64x32 pixels" in capsys.readouterr().err
