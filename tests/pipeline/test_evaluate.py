import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from pipeline.bench.baseline import branch_clips
from pipeline.clips import SceneGenerator
from pipeline.clips.motion import colour_of
from pipeline.distill.passes import networks_of
from pipeline.distill.student import build_student, teacher_grid
from pipeline.errors import ModelError
from pipeline.judge.evaluate import compare_students, evaluate, wilson_interval
from pipeline.judge.judging import Candidate, Sampling
from pipeline.judge.perception import Perception
from pipeline.judge.sprite import lab
from pipeline.model.guidance import Guidance
from pipeline.serve.engine import Animator
from pipeline.serve.sources import open_checkpoint
from pipeline.serve.store import describe

from .test_distill_flows import teacher_of

SIZE, FRAMES = 32, 8


class Oracle:
    """Stands for a pipeline that makes the very clips its pictures were taken from."""

    default_size = (SIZE, SIZE)
    config = SimpleNamespace()
    device = "cpu"
    network = SimpleNamespace(dtype=torch.float32)
    family = SimpleNamespace(encode_clip=lambda _parts, clips: clips)  # an autoencoder that is the identity
    parts = None

    def __init__(self, seed, spoil=lambda video: video):
        self.generator = SceneGenerator(SIZE, FRAMES, seed=seed, held_out=True, judged=True)
        self.spoil = spoil

    def decode_latents(self, latents, chunk):
        return latents

    def __call__(self, images, prompts, **options):
        batch = self.generator.batch(len(images))
        assert batch.captions == prompts
        assert len(options["generator"]) == len(images)
        return SimpleNamespace(frames=self.spoil(batch.clips).transpose(1, 2))


def oracle(seed=3, **options):
    info = SimpleNamespace(frames=FRAMES, steps=32, passes=96, takes_prompt=True, needs_last_image=False)
    return SimpleNamespace(pipe=Oracle(seed, **options), info=info, name="oracle")


def test_a_model_that_makes_the_true_clips_gets_full_marks():
    result = evaluate(oracle(), clips=10, seed=3, batch=4)
    assert result.motion_accuracy == 1
    assert set(result.accuracy_by_motion.values()) == {1.0}
    assert result.unclear == 0
    assert result.ground_truth_psnr_db == 100
    assert result.first_frame_psnr_db == 100
    assert result.vae_psnr_db > 90
    assert result.psnr_to_teacher_db is None
    assert (result.outline_iou, result.outline_iou_p10) == (1, 1)
    assert result.colour_error < 1
    assert result.background_psnr_db == 100
    assert (result.model, result.clips, result.seed, result.steps, result.passes) == ("oracle", 10, 3, 32, 96)


def test_a_model_that_moves_backwards_fails_where_motion_has_a_direction():
    result = evaluate(oracle(spoil=lambda video: video.flip(2)), clips=24, seed=3)
    assert result.accuracy_by_motion["moves left"] == 0
    assert result.accuracy_by_motion["stays still"] == 1
    assert 0 < result.motion_accuracy < 1


def test_a_lost_sprite_is_counted_as_unclear():
    result = evaluate(oracle(spoil=torch.zeros_like), clips=6, seed=3)
    assert result.unclear > 0
    assert result.motion_accuracy == 0


def test_a_sprite_that_loses_its_outline_its_colour_or_its_background_is_told_by_that_figure_alone():
    def figures(spoil):
        made = evaluate(oracle(spoil=spoil), clips=8, seed=3)
        return made.outline_iou, made.colour_error, made.background_psnr_db

    truth = SceneGenerator(SIZE, FRAMES, seed=3, held_out=True, judged=True).batch(8)
    masks = torch.stack([scene.mask for scene in truth.scenes])[:, None]

    def other(change):
        return lambda video: change(video, masks)

    behind = torch.stack([scene.background for scene in truth.scenes])[:, :, None]
    paint = torch.stack([colour_of(scene.clip[:, 0], scene.mask[0]) for scene in truth.scenes])[:, :, None, None, None]
    whole = figures(lambda video: video)
    half = figures(
        other(lambda video, mask: torch.where(torch.arange(SIZE) % 2 == 0, video, behind * mask + video * (1 - mask)))
    )
    pale = figures(
        other(lambda video, mask: video + mask * 0.25 * (torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1, 1) - paint))
    )
    noisy = figures(other(lambda video, mask: video + (mask < 0.01) * 0.05 * torch.sin(torch.arange(SIZE) * 2.0)))
    assert half[0] < 0.8 * whole[0]
    assert pale[1] > 5 > whole[1]
    assert noisy[2] < 35 < whole[2]
    assert noisy[0] > 0.9


@pytest.mark.parametrize(
    ("colour", "known"),
    [((1, 1, 1), (100, 0, 0)), ((1, 0, 0), (53.24, 80.09, 67.20)), ((0.2, 0.4, 0.6), (42.01, -0.15, -32.85))],
)
def test_colours_in_lab_are_those_of_the_standard(colour, known):
    assert lab(torch.tensor(colour, dtype=torch.float32)).tolist() == pytest.approx(known, abs=0.05)


def test_a_student_is_compared_with_its_teacher():
    result = evaluate(oracle(), clips=2, seed=3, teacher=oracle())
    assert (result.psnr_to_teacher_db, result.ssim_to_teacher) == (100, 1)
    other = evaluate(oracle(spoil=lambda video: 1 - video), clips=2, seed=3, teacher=oracle())
    assert other.psnr_to_teacher_db < 20
    assert other.ssim_to_teacher < 0.5


def test_flicker_stands_beside_that_of_the_true_clips():
    plain = evaluate(oracle(), clips=3, seed=3)
    assert plain.flicker == plain.flicker_of_truth > 0
    # Every other frame a little brighter: 2 x 0.1 x 255 in what stands still.
    alternating = 0.1 * (torch.arange(FRAMES) % 2).view(1, 1, -1, 1, 1)
    shaken = evaluate(oracle(spoil=lambda video: video + alternating), clips=3, seed=3)
    assert shaken.flicker_of_truth == plain.flicker_of_truth
    assert shaken.flicker - plain.flicker == pytest.approx(51, rel=0.2)


@pytest.mark.parametrize("option", ["clips", "batch", "seeds_per_clip"])
def test_a_count_below_one_is_named(option):
    with pytest.raises(ValueError, match=f"{option}: 0 is below 1"):
        evaluate(oracle(), **{"clips": 4, option: 0})


def test_figures_do_not_depend_on_the_size_of_batches(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    seen = [0]
    one = evaluate(animator, clips=3, batch=1, on_progress=lambda done, _total: seen.append(done))
    all_at_once = evaluate(animator, clips=3, batch=3)
    assert seen == [0, 1, 2, 3]
    assert one.passes == 6  # two steps, three branches
    for name in ("first_frame_psnr_db", "ground_truth_psnr_db", "vae_psnr_db", "motion_accuracy"):
        assert getattr(one, name) == pytest.approx(getattr(all_at_once, name), abs=0.01)


def test_figures_of_a_checkpoint_that_samples_its_pictures_do_not_depend_on_the_size_of_batches(i2vgen):
    """As published I2VGen-XL does, from torch's global generator."""
    i2vgen.register_to_config(num_frames=2, num_inference_steps=2, image_latents_mode="sample")
    candidate = Candidate(Animator(i2vgen, describe(i2vgen, "random", {}), "random"))
    batch = SceneGenerator(32, 2, seed=3, judged=True).batch(3)
    together = candidate.animate(batch, [5, 6, 7], side=32)
    generator = SceneGenerator(32, 2, seed=3, judged=True)
    alone = torch.cat([candidate.animate(generator.batch(1), [seed], side=32) for seed in (5, 6, 7)])
    assert float((together - alone).abs().max()) < 1e-5
    assert float((together[0] - together[1]).abs().max()) > 1e-3


def test_a_model_of_oblong_clips_is_judged_on_squares(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    animator.pipe.unet.register_to_config(sample_size=(8, 12))
    assert animator.pipe.default_size == (32, 48)
    assert evaluate(animator, clips=1).clips == 1


# ------------------------------------------------------------------ other sampling, diversity, perception


def test_a_model_can_be_judged_with_other_steps_and_guidance(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    own = Sampling.of(animator.pipe)
    assert own == Sampling(2, Guidance(2.0, 1.5))
    result = evaluate(animator, clips=1, sampling=Sampling.of(animator.pipe, 3, 1.0, 1.0))
    assert (result.model, result.steps, result.passes) == ("tiny, 3 x 1", 3, 3)
    spelled_out, plain = evaluate(animator, clips=1, sampling=own), evaluate(animator, clips=1)
    assert (spelled_out.model, spelled_out.passes) == ("tiny, 2 x 3", plain.passes)
    assert spelled_out.ground_truth_psnr_db == plain.ground_truth_psnr_db != result.ground_truth_psnr_db


@pytest.mark.parametrize(
    ("given", "name"), [({"steps": 0}, "steps: 0"), ({"guidance_scale": -1}, "guidance_scale: -1")]
)
def test_sampling_out_of_range_is_named(given, name):
    with pytest.raises(ValueError, match=name):
        Sampling.of(
            SimpleNamespace(config=SimpleNamespace(**PLAN, guidance_range=None, distilled_guidance_scale=None)), **given
        )


def test_diversity_is_measured_where_asked_and_changes_no_other_figure(teacher_folder):
    animator = open_checkpoint(teacher_folder)
    plain = evaluate(animator, clips=3, batch=2).to_dict()
    diverse = evaluate(animator, clips=3, batch=2, seeds_per_clip=2).to_dict()
    assert plain.pop("diversity") is None
    assert diverse.pop("diversity") > 0
    assert {**plain, "seconds_per_clip": 0} == {**diverse, "seconds_per_clip": 0}


def test_features_give_a_distance_to_the_true_clips():
    def colours(videos):
        return videos.mean(dim=(2, 3, 4))

    perception = Perception(features=colours)
    assert evaluate(oracle(), clips=6, seed=3, batch=4).fvd is None
    assert evaluate(oracle(), clips=6, seed=3, batch=4, perception=perception).fvd == pytest.approx(0, abs=1e-3)
    dark = evaluate(oracle(spoil=lambda video: video / 2), clips=6, seed=3, perception=perception)
    assert dark.fvd > 0.01
    assert evaluate(oracle(), clips=1, seed=3, perception=perception).fvd is None


# ------------------------------------------------------------------ student beside teacher


def compare(student, teacher, **options):
    return compare_students({"student": student}, teacher, **options)["student"]


PLAN = {"num_inference_steps": 32, "guidance_scale": 4.0, "image_guidance_scale": 1.5}


class Stills(Oracle):
    """Stands for a pipeline that repeats its picture, darker by `error(steps, text guidance)`.

    Its U-Net multiplies a matrix of one row a guidance branch, which makes 2 operations a branch.
    """

    family = SimpleNamespace(
        encode_clip=lambda _parts, clips: clips,
        predict=lambda network, latents, _timestep, _cond: network(latents),
        networks=("network",),
        takes_prompt=True,
        drops_picture=True,
        stacks_branches=True,
        last_image=lambda _parts: "never",
        network_at=lambda *_: "network",
    )
    parts = None

    def __init__(self, plan, error):
        super().__init__(seed=0)
        self.network, self.denoiser = torch.nn.Linear(1, 1, bias=False), None
        self.network.dtype = torch.float32
        self.networks = (self.network,)
        self.scheduler = DDIMScheduler()
        self.config = SimpleNamespace(**plan, guidance_range=None, distilled_guidance_scale=None)
        self.error, self.calls = error, []

    def __call__(self, images, prompts, **options):
        steps = options.get("num_inference_steps", self.config.num_inference_steps)
        text = options.get("guidance_scale", self.config.guidance_scale)
        image = options.get("image_guidance_scale", self.config.image_guidance_scale)
        if self.denoiser is not None:
            self.denoiser.start(None)(torch.ones(Guidance(text, image).passes, 1), torch.tensor(0))
        self.calls.append((steps, text, image, [generator.initial_seed() for generator in options["generator"]]))
        pictures = torch.stack([torch.from_numpy(np.asarray(image) / 255) for image in images]).float()
        video = (pictures.permute(0, 3, 1, 2) - self.error(steps, text)).clamp(0, 1)
        return SimpleNamespace(frames=video[:, None].repeat(1, FRAMES, 1, 1, 1))


def stills(name, plan, error, frames=FRAMES):
    passes = plan["num_inference_steps"] * Guidance(plan["guidance_scale"], plan["image_guidance_scale"]).passes
    said = {"takes_prompt": True, "needs_last_image": False}
    info = SimpleNamespace(frames=frames, steps=plan["num_inference_steps"], passes=passes, **said)
    return SimpleNamespace(pipe=Stills(plan, error), info=info, name=name)


def test_a_student_is_judged_beside_three_samplings_of_its_teacher():
    # The teacher's error grows with fewer steps, and more so without guidance.
    errors = {(32, 4): 0, (8, 4): 0.02, (8, 1): 0.1, (2, 4): 0.5}  # two steps warm up
    teacher = stills("embedded teacher", PLAN, lambda steps, text: errors[steps, text])
    plan = {"num_inference_steps": 8, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    student = stills("student", plan, lambda _steps, _text: 0.01)
    told = []
    comparison = compare(student, teacher, clips=5, seed=7, batch=4, on_progress=lambda *count: told.append(count))
    results = comparison.to_dict()
    assert {name: (r["model"], r["steps"], r["passes"]) for name, r in results.items()} == {
        "teacher": ("embedded teacher", 32, 96),
        "undistilled_guided": ("embedded teacher, 8 x 3", 8, 24),
        "undistilled": ("embedded teacher, 8 x 1", 8, 8),
        "student": ("student", 8, 8),
    }
    assert all((r["clips"], r["seed"]) == (5, 7) for r in results.values())
    # A constant error of 0.01 is 40 dB; clamping at black makes it a little less.
    to_teacher = {name: r["psnr_to_teacher_db"] for name, r in results.items()}
    assert to_teacher["teacher"] is None
    assert to_teacher["student"] == pytest.approx(40, abs=1)
    assert to_teacher["undistilled_guided"] == pytest.approx(34, abs=1)
    assert to_teacher["undistilled"] == pytest.approx(20, abs=1)
    assert told[-1] == (20, 20)
    assert {name: r["operations"] for name, r in results.items()} == {
        "teacher": 2 * 96,
        "undistilled_guided": 2 * 24,
        "undistilled": 2 * 8,
        "student": 2 * 8,
    }
    assert all(r["weights_bytes"] == 4 for r in results.values())
    # The same noise for all, and the teacher in full once a batch.
    by_plan = {}
    for steps, text, image, seeds in teacher.pipe.calls:
        by_plan.setdefault((steps, text, image), []).append(seeds)
    batches = [[7, 8, 9, 10], [11]]
    warmed = [batches[0]]
    assert by_plan == {(2, 4.0, 1.5): warmed, (32, 4.0, 1.5): batches, (8, 4.0, 1.5): batches, (8, 1.0, 1.0): batches}


def test_students_are_judged_together_and_the_teacher_is_sampled_once():
    error = {(32, 4): 0, (8, 4): 0.02, (8, 1): 0.1, (2, 4): 0.05, (2, 1): 0.2}
    teacher = stills("embedded teacher", PLAN, lambda steps, text: error[steps, text])
    plan = {"num_inference_steps": 8, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    students = {
        "eight": stills("eight", plan, lambda _steps, _text: 0.01),
        "other": stills("other", plan, lambda _steps, _text: 0.1),
        "two": stills("two", {**plan, "num_inference_steps": 2}, lambda _steps, _text: 0.02),
    }
    compared = compare_students(students, teacher, clips=5, seed=7, batch=4)
    assert [c.student.model for c in compared.values()] == ["eight", "other", "two"]
    assert [c.undistilled.passes for c in compared.values()] == [8, 8, 2]
    assert [c.undistilled_guided.passes for c in compared.values()] == [24, 24, 6]
    to_teacher = [c.student.psnr_to_teacher_db for c in compared.values()]
    assert to_teacher == pytest.approx([40, 20, 34], abs=1)
    assert len({id(c.teacher) for c in compared.values()}) == 1
    assert len([call for call in teacher.pipe.calls if call[0] == 32]) == 2
    # The same as each by itself.
    alone = compare(students["two"], teacher, clips=5, seed=7, batch=4)
    assert alone.student.psnr_to_teacher_db == compared["two"].student.psnr_to_teacher_db


def test_a_student_of_a_pipeline_is_compared_in_one_run(teacher_folder):
    teacher = open_checkpoint(teacher_folder)
    grid = teacher_grid(teacher.pipe, student_steps=1)
    pipe = build_student(teacher.pipe, copy.deepcopy(teacher.pipe.unet), grid)
    student = Animator(pipe, describe(pipe, "tiny", {}), "student")
    comparison = compare(student, teacher, clips=2, seeds_per_clip=2)
    assert [r["passes"] for r in comparison.to_dict().values()] == [6, 3, 1, 1]
    assert comparison.teacher.ssim_to_teacher is None
    assert all(r["diversity"] > 0 and r["seconds_per_clip"] > 0 for r in comparison.to_dict().values())
    operations = [r["operations"] for r in comparison.to_dict().values()]
    assert operations[0] == 2 * operations[1] == 6 * operations[2] == 6 * operations[3] > 1e6
    assert list(branch_clips(student, Image.new("RGB", (32, 32)), "a ball", seed=1)) == []
    alone = evaluate(student, clips=2, teacher=teacher)
    assert alone.psnr_to_teacher_db == comparison.student.psnr_to_teacher_db


@pytest.mark.parametrize("kind", ["wan-2.1-flf", "ltx", "svd", "cogvideox"])
def test_a_student_of_a_checkpoint_of_any_kind_is_compared(kind, tmp_path):
    """Between two pictures, without a prompt, never without its picture, on a grid of its own: each has its call."""
    teacher_pipe = teacher_of(kind, tmp_path)
    teacher_pipe.register_to_config(num_inference_steps=2)
    pipe = build_student(teacher_pipe, networks_of(teacher_pipe), teacher_grid(teacher_pipe, student_steps=2))
    teacher, student = (Animator(one, describe(one, kind, {}), kind) for one in (teacher_pipe, pipe))
    comparison = compare(student, teacher, clips=1)
    assert [r["passes"] for r in comparison.to_dict().values()] == [4, 4, 2, 2]
    operations = [r["operations"] for r in comparison.to_dict().values()]
    assert operations[0] == operations[1] == 2 * operations[2] == 2 * operations[3] > 0


def test_a_teacher_of_longer_clips_is_refused():
    student, teacher = (stills(name, PLAN, lambda *_: 0, frames) for name, frames in (("student", 8), ("teacher", 16)))
    for judge in (lambda: evaluate(student, clips=1, teacher=teacher), lambda: compare(student, teacher, clips=1)):
        with pytest.raises(ModelError, match="teacher: makes clips of 16 frames, and student of 8"):
            judge()


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263, 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == pytest.approx(1)
