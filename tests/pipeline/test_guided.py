"""A student that is told its guidance scale: what it begins as, what it learns, and how it is asked."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import ImageAnimationPipeline
from pipeline.commands.options import settings_with_parameters
from pipeline.distill.data import GeneratedSource
from pipeline.distill.passes import Networks, conditions, draw_scales, teacher_pass
from pipeline.distill.settings import DistillSettings
from pipeline.distill.trainer import Distiller
from pipeline.errors import InputError
from pipeline.judge.judging import Sampling
from pipeline.model.families import guidance_embedding
from pipeline.model.families.guided import GUIDANCE_WIDTH, GuidedI2VGenXLUNet, guided_unet
from pipeline.model.guidance import ClipGuidance, Guidance
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import example_of, run_traced
from pipeline.packaging.card import model_card
from pipeline.serve.engine import Animator
from pipeline.serve.manifest import ModelInfo
from pipeline.serve.request import AnimationRequest
from pipeline.serve.store import describe, write_package

ROOT = Path(__file__).parents[2]
SOURCE = GeneratedSource(32, frames=3, batch=2)
SETTINGS = DistillSettings(student_steps=2, updates=3, warmup=1, learning_rate=5e-3, guidance_range=(1, 4))


def as_teacher(pipe: ImageAnimationPipeline) -> ImageAnimationPipeline:
    """Of 4 steps."""
    pipe.register_to_config(num_inference_steps=4, guidance_scale=2.0, num_frames=3, fps=8)
    if pipe.family.name == "i2vgen-xl":
        pipe.register_to_config(image_guidance_scale=1.5, image_latents_fill="repeat", image_latents_mode="mode")
    return pipe


@pytest.fixture
def teacher(pipe) -> ImageAnimationPipeline:
    return as_teacher(pipe)


def student_of(teacher: ImageAnimationPipeline, folder: Path) -> ImageAnimationPipeline:
    """One that heeds its scale, without the time that it takes to learn to."""
    student = Distiller(teacher, SOURCE, SETTINGS, folder).finished()
    torch.manual_seed(0)
    nn.init.normal_(student.unet.time_embedding.cond_proj.weight, std=0.3)
    return student


def animate(pipe: ImageAnimationPipeline, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(SOURCE[0].pictures[0], "a red ball", generator=generator, output_type="latent", **more).frames


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# ------------------------------------------------------------------ the parts


def test_the_embedding_is_that_of_published_consistency_models():
    from diffusers import LatentConsistencyModelPipeline

    scales = torch.tensor([0.0, 1.0, 2.5, 7.0])
    for width in (256, 7):
        theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(SimpleNamespace(), scales, width)
        assert torch.allclose(guidance_embedding(scales, width), theirs, atol=2e-3)  # sines of thousands in float32


@given(st.lists(st.floats(0, 8), min_size=1, max_size=3), st.sampled_from([None, 0.0, 1.0, 1.5]))
@settings(max_examples=40, deadline=None)
def test_clips_with_scales_of_their_own_are_guided_as_each_would_be_alone(scales, image):
    every = {name: torch.randn(len(scales), 2, 3) for name in ("negative", "uncond", "image", "full")}
    together = ClipGuidance(torch.tensor(scales), image)
    found = together.combine(torch.cat([every[name] for name in together.branches]))
    for k, scale in enumerate(scales):
        alone = Guidance(scale, image)
        expected = alone.combine(torch.cat([every[name][k : k + 1] for name in alone.branches]))
        assert torch.allclose(found[k : k + 1], expected, atol=1e-4)


def test_a_unet_that_is_told_the_scale_begins_as_the_one_that_is_not(teacher):
    student, before = guided_unet(teacher.unet), torch.get_rng_state()
    _, told = conditions(teacher, SOURCE[0], Guidance(1.0, 1.0), torch.Generator().manual_seed(0))
    z, t = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([900, 500])
    plain = teacher.family.predict(teacher.unet, z, t, told)
    for scale in (1.0, 3.0):
        scaled = {**told, "guidance": guidance_embedding(torch.full((2,), scale), GUIDANCE_WIDTH)}
        assert torch.equal(teacher.family.predict(student, z, t, scaled), plain)
    assert not student.time_embedding.cond_proj.weight.any()
    assert torch.equal(torch.get_rng_state(), before)
    assert type(guided_unet(student)) is type(student)


def test_of_another_unet_it_is_not_known_how_to_tell_it():
    with pytest.raises(ValueError, match=r"^unet: Linear cannot be told"):
        guided_unet(nn.Linear(1, 1))


# ------------------------------------------------------------------ what is learned


def test_scales_are_drawn_from_the_whole_range():
    scales = draw_scales((1.0, 4.0), 1000, torch.Generator().manual_seed(0))
    assert scales.min() >= 1
    assert scales.max() <= 4
    assert float(scales.mean()) == pytest.approx(2.5, abs=0.1)


def test_each_clip_has_the_target_of_its_own_scale(teacher):
    z, times = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([900, 500])
    image = teacher.config.image_guidance_scale

    def predicted(guidance: Any) -> Tensor:
        told, _ = conditions(teacher, SOURCE[0], guidance, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return teacher_pass(teacher, told, guidance)(z, times, None)

    mixed = predicted(ClipGuidance(torch.tensor([1.5, 4.0]), image))
    low, high = predicted(Guidance(1.5, image)), predicted(Guidance(4.0, image))
    assert difference(mixed[0], low[0]) < 1e-4
    assert difference(mixed[1], high[1]) < 1e-4
    assert difference(low, high) > 1e-2


class Oracle(nn.Module):
    """A student that reads the scale out of what it is told, and guides the teacher by it."""

    def __init__(self, teacher: ImageAnimationPipeline, too_much: float = 0.0) -> None:
        super().__init__()
        self.teacher, self.too_much = teacher, too_much

    def forward(self, z: Tensor, times: Tensor, timestep_cond: Tensor, **told: Any) -> tuple[Tensor]:
        slowest = timestep_cond[:, GUIDANCE_WIDTH // 2 - 1]  # sine of a tenth of the scale
        scale = (10 * slowest.asin() + self.too_much).view(-1, 1, 1, 1, 1)
        empty = self.teacher.encode_prompt([""] * len(z), self.teacher.default_clip_skip)
        other = {**told, "encoder_hidden_states": empty}
        dropped = {name: torch.zeros_like(told[name]) for name in ("image_latents", "image_embeddings")}
        full, image, uncond = (self.teacher.unet(z, times, **each)[0] for each in (told, other, {**other, **dropped}))
        return (uncond + 1.5 * (image - uncond) + scale * (full - image),)


@torch.no_grad()
def test_the_loss_is_least_for_the_teacher_guided_by_the_scale_that_the_student_is_told(one_level_i2vgen, tmp_path):
    distiller = Distiller(as_teacher(one_level_i2vgen), SOURCE, replace(SETTINGS, student_steps=4), tmp_path)
    losses = {}
    for too_much in (-0.3, 0.0, 0.3):
        distiller.objective.student = Networks(distiller.teacher, {"unet": Oracle(distiller.teacher, too_much)})
        losses[too_much] = float(distiller.loss(SOURCE[0], 0))
    assert losses[0.0] < 1e-3 * min(losses[-0.3], losses[0.3])


def test_every_weight_has_a_gradient_and_the_global_generator_no_say(teacher, tmp_path):
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        distiller = Distiller(teacher, SOURCE, SETTINGS, tmp_path)
        loss = distiller.loss(SOURCE[0], 3)
        loss.backward()
        losses.append(float(loss.detach()))
        assert all(p.grad is not None for p in distiller.trained)  # DDP would wait for those that have none
    assert losses[0] == losses[1]


def test_a_run_that_was_broken_off_goes_on_bit_by_bit(one_level_i2vgen, tmp_path):
    teacher = as_teacher(one_level_i2vgen)
    whole = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "whole")
    expected = whole.train().unet.state_dict()
    Distiller(teacher, SOURCE, SETTINGS, tmp_path / "broken").train(minutes=0)
    broken = Distiller(teacher, SOURCE, SETTINGS, tmp_path / "broken")
    found = broken.train().unet.state_dict()
    assert broken.losses == whole.losses
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert expected["time_embedding.cond_proj.weight"].any()


def test_with_lora_what_the_scale_does_is_learned_too(one_level_i2vgen, tmp_path):
    student = Distiller(as_teacher(one_level_i2vgen), SOURCE, replace(SETTINGS, lora_rank=2), tmp_path).train()
    assert student.unet.time_embedding.cond_proj.weight.any()
    assert difference(animate(student, guidance_scale=1.0), animate(student, guidance_scale=4.0)) > 0


def test_a_student_that_is_told_its_scale_can_be_a_teacher(one_level_i2vgen, tmp_path):
    first = student_of(as_teacher(one_level_i2vgen), tmp_path / "first")
    fewer = replace(SETTINGS, student_steps=1, updates=1, guidance_range=(1.5, 3))
    second = Distiller(first, SOURCE, fewer, tmp_path / "second")
    guidance, scales = second.objective.guidance, torch.tensor([1.5, 3.0])
    told, of_student = conditions(first, SOURCE[0], guidance, torch.Generator().manual_seed(0), scales)
    assert guidance.passes == 1
    assert torch.equal(told["guidance"], of_student["guidance"])
    student = second.train()
    assert student.config.guidance_range == [1.5, 3.0]
    assert (student.config.distilled_guidance_scale, student.config.distilled_image_guidance_scale) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((3, 4), r"^guidance_range: \[3.0, 4.0\] leaves out 2, the teacher's own scale"),
        ((4, 1), r"^guidance_range: \[4, 1\] is not a least and a most scale within 0 to 100"),
        ((0, 101), r"^guidance_range: "),
        ((1,), r"^guidance_range: "),
        (("1", 2), r"^guidance_range: "),
        ((1, math.nan), r"^guidance_range: "),
    ],
)
def test_a_range_that_does_not_fit_is_refused_by_name(one_level_i2vgen, tmp_path, limits, words):
    with pytest.raises(ValueError, match=words):
        Distiller(as_teacher(one_level_i2vgen), SOURCE, replace(SETTINGS, guidance_range=limits), tmp_path)


def test_teachers_that_are_students_say_which_scales_they_have(one_level_i2vgen, tmp_path):
    teacher = as_teacher(one_level_i2vgen)
    told = student_of(teacher, tmp_path)
    for limits in (None, (0.5, 3)):
        with pytest.raises(ValueError, match=r"^guidance_range: the teacher is told its scale; .* within \[1.0, 4.0\]"):
            Distiller(told, SOURCE, replace(SETTINGS, guidance_range=limits), tmp_path)
    built_in = Distiller(teacher, SOURCE, replace(SETTINGS, guidance_range=None), tmp_path).finished()
    with pytest.raises(ValueError, match=r"^guidance_range: the teacher has its scale in its weights"):
        Distiller(built_in, SOURCE, SETTINGS, tmp_path)


@pytest.mark.parametrize(("text", "found"), [("[1, 4]", (1.0, 4.0)), ("null", None)])
def test_the_command_line_takes_a_range(text, found):
    options = SimpleNamespace(parameters=[("guidance_range", text)])
    assert settings_with_parameters(options, DistillSettings(), of="distill").guidance_range == found


@pytest.mark.parametrize("text", ["2e-4", "0.0002", "2.0E-04"])
def test_the_command_line_takes_numbers_as_people_write_them(text):
    options = SimpleNamespace(parameters=[("learning_rate", text)])
    assert settings_with_parameters(options, DistillSettings(), of="distill").learning_rate == 2e-4


# ------------------------------------------------------------------ how it is asked


def test_a_student_makes_one_pass_a_step_at_any_scale_and_heeds_it(teacher, tmp_path):
    student, passes = student_of(teacher, tmp_path), []
    student.unet.register_forward_pre_hook(lambda _module, args: passes.append(len(args[0])))
    clips = {scale: animate(student, guidance_scale=scale) for scale in (1, 2.0, 4.0, None)}
    assert passes == [1] * 8
    assert torch.equal(clips[None], clips[2.0])  # the teacher's
    assert difference(clips[1], clips[4.0]) > 1e-3
    for name, sampling in {"asked": Sampling.of(student, 2, 4.0), "own": Sampling.of(student, 2)}.items():
        assert (sampling.guidance.passes, sampling.told_scale) == (1, {"asked": 4.0, "own": 2.0}[name])


@pytest.mark.parametrize("scale", [0.9, 4.1, -1, math.nan, math.inf])
def test_a_scale_outside_the_range_is_refused_with_the_limits(one_level_i2vgen, tmp_path, scale):
    student = student_of(as_teacher(one_level_i2vgen), tmp_path)
    with pytest.raises(ValueError, match=r"^guidance_scale: .* is outside 1 to 4"):
        animate(student, guidance_scale=scale)
    with pytest.raises(ValueError, match=r"^image_guidance_scale: 1.5 is not 1"):
        animate(student, image_guidance_scale=1.5)


def test_a_range_needs_a_unet_that_is_told_and_a_scale_within(i2vgen, i2vgen_parts):
    guided = guided_unet(i2vgen.unet)
    for unet, limits, default, words in (
        (i2vgen.unet, (1, 4), 2.0, "I2VGenXLUNet is not told a guidance scale"),
        (guided, (4, 1), 2.0, "not a least and a most scale"),
        (guided, (1, 4), None, "leaves out distilled_guidance_scale, None"),
        (guided, (1, 4), 5.0, "leaves out distilled_guidance_scale, 5.0"),
    ):
        parts = {**i2vgen_parts, "unet": unet}
        with pytest.raises(ValueError, match=rf"^guidance_range: .*{words}"):
            ImageAnimationPipeline(**parts, guidance_range=limits, distilled_guidance_scale=default)


LOAD_ELSEWHERE = """
import sys
import torch
from pipeline import ImageAnimationPipeline
from pipeline.distill.data import GeneratedSource

torch.set_num_threads(1)
pipe = ImageAnimationPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
generator, picture = torch.Generator().manual_seed(0), GeneratedSource(32, frames=3, batch=2)[0].pictures[0]
clip = pipe(picture, "a red ball", generator=generator, output_type="latent", guidance_scale=3.5).frames
torch.save({"unet": type(pipe.unet).__name__, "range": pipe.config.guidance_range, "clip": clip}, sys.argv[2])
"""


@pytest.mark.slow
def test_another_process_loads_it_and_gives_the_same_clip(i2vgen, tmp_path):
    student = student_of(as_teacher(i2vgen), tmp_path)
    student.save_pretrained(tmp_path / "student")
    command = [sys.executable, "-c", LOAD_ELSEWHERE, str(tmp_path / "student"), str(tmp_path / "found.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Expected types" not in done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert (found["unet"], found["range"]) == (GuidedI2VGenXLUNet.__name__, [1.0, 4.0])
    assert difference(found["clip"], animate(student, guidance_scale=3.5)) < 1e-4


def test_a_student_comes_back_as_it_was_saved(teacher, tmp_path):
    student = student_of(teacher, tmp_path)
    student.save_pretrained(tmp_path / "student")
    loaded = ImageAnimationPipeline.from_pretrained(tmp_path / "student")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.unet) is type(student.unet)
    assert loaded.config.guidance_range == [1.0, 4.0]
    assert difference(animate(loaded, guidance_scale=3.5), animate(student, guidance_scale=3.5)) < 1e-4


@pytest.mark.parametrize("family", ["i2vgen", "pia"])
@torch.no_grad()
def test_prepared_traced_and_exported_steps_take_the_scale_as_an_input(request, family, tmp_path):
    student = student_of(as_teacher(request.getfixturevalue(f"one_level_{family}")), tmp_path)
    plain = {scale: animate(student, guidance_scale=scale) for scale in (1.0, 4.0)}
    prepare_once(student)
    example = example_of(student)
    for scale, clip in plain.items():
        assert difference(animate(student, guidance_scale=scale), clip) < 1e-5
    module = student.denoiser.module
    exported = torch.export.export(module, example.inputs, strict=False)
    assert not exported.constants
    assert difference(exported.module()(*example.inputs), module(*example.inputs)) < 1e-5
    run_traced(student)
    for scale, clip in plain.items():
        assert difference(animate(student, guidance_scale=scale), clip) < 1e-5
    assert student.denoiser.run.misses == 0


# ------------------------------------------------------------------ the engine


@pytest.fixture(scope="module")
def packaged(one_level_i2vgen_parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packaged")
    teacher = as_teacher(ImageAnimationPipeline(**one_level_i2vgen_parts))
    student = student_of(teacher, folder / "training")
    info = describe(student, "tiny", {})
    write_package(student, folder / "model", info, model_card(info, {}, embedded=False))
    return folder / "model"


def test_a_package_says_what_may_be_asked_and_animates_so(packaged):
    animator = Animator.load(packaged)
    info = animator.info
    told = info.controls["guidance_scale"]
    assert (told.least, told.most, told.default) == (1.0, 4.0, 2.0)
    assert (info.steps, info.passes, info.guidance_distilled) == (2, 2, True)
    assert "how much the prompt counts, 1 to 4" in (packaged / "README.md").read_text()
    picture = SOURCE[0].pictures[0]
    clips = [
        animator.animate(
            picture, AnimationRequest("a red ball", seed=0, controls={"guidance_scale": scale} if scale else {})
        ).clip
        for scale in (None, 2.0, 4.0)
    ]
    assert (clips[0] == clips[1]).all()
    assert (clips[0] != clips[2]).any()


@pytest.mark.parametrize("scale", [0.99, 4.01, math.nan, math.inf])
def test_a_request_outside_the_range_is_refused_before_any_work(packaged, scale):
    animator = Animator(None, ModelInfo.read(packaged), "tiny")
    with pytest.raises(InputError, match="is outside 1 to 4") as caught:
        animator.check(AnimationRequest("x", controls={"guidance_scale": scale}))
    assert (caught.value.field, caught.value.code) == ("guidance_scale", "out_of_range")
    animator.check(AnimationRequest("x", controls={"guidance_scale": 4.0}))


def test_a_model_without_the_control_refuses_it(packaged):
    info = ModelInfo.read(packaged).changed(controls={})
    with pytest.raises(InputError) as caught:
        Animator(None, info, "tiny").check(AnimationRequest("x", controls={"guidance_scale": 2.0}))
    assert (caught.value.field, caught.value.code) == ("guidance_scale", "not_supported")
