"""Clips of which the right answer is known: moved at a given speed, darker by a given amount, of another's picture."""

from __future__ import annotations

import builtins
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from pipeline.commands.cli import main
from pipeline.errors import ModelError, StillmotionError
from pipeline.judge.gates import check_pictures, load_gates
from pipeline.judge.on_pictures import compare_on_pictures, evaluate_on_pictures
from pipeline.judge.photographs import Picture, read_pictures
from pipeline.judge.real_clips import EfficientNetLite0, check_clip, colours, likeness_db, motion
from pipeline.runs.held_out import listed

from .small_checkpoints import SMALL

SIDE, FRAMES, FPS = 96, 9, 8


def picture(seed=0, side=SIDE):
    """Coarse and fine texture in colours of its own, as photographs have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells, weight in ((3, 1.0), (12, 0.5), (40, 0.3)):
        rough = rng.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        total += weight * np.asarray(Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(total / 1.8, 0, 255).astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def panned(image, speed, frames=FRAMES):
    """A clip that moves to the left by `speed` pixels a frame."""
    margin = int(abs(speed) * frames) + 1
    wide = image.resize((SIDE + margin, SIDE + margin), Image.Resampling.BICUBIC)
    box = [(speed * t, 0, speed * t + SIDE, SIDE) for t in range(frames)]
    return torch.stack([as_tensor(wide.resize((SIDE, SIDE), Image.Resampling.BICUBIC, one)) for one in box], dim=1)


@pytest.mark.parametrize("speed", [1.0, 2.0, 4.0])
def test_motion_is_the_speed_of_what_moves(speed):
    assert motion(panned(picture(), speed), FPS) == pytest.approx(100 * FPS * speed / SIDE, rel=0.08)


def test_a_still_clip_has_no_motion_and_half_the_speed_has_half_of_it():
    still = as_tensor(picture())[:, None].expand(-1, FRAMES, -1, -1)
    assert motion(still, FPS) < 0.01
    assert motion(panned(picture(), 1.5), FPS) / motion(panned(picture(), 3.0), FPS) == pytest.approx(0.5, abs=0.04)


def test_a_clip_of_one_frame_or_of_few_pixels_stands_still():
    assert motion(as_tensor(picture())[:, None], FPS) == 0
    assert motion(torch.rand(3, 4, 8, 8), FPS) == 0


def test_a_clip_that_gets_darker_drifts_by_as_much():
    still = 0.5 + 0.2 * (as_tensor(picture())[:, None].expand(-1, FRAMES, -1, -1) - 0.5)
    darker = still - torch.linspace(0, 0.2, FRAMES).view(1, -1, 1, 1)
    found = colours(darker)
    assert found["brightness_trend"] == pytest.approx(-255 * 0.2 * 15 / 16, rel=0.01)  # of the last two of nine frames
    assert found["brightness_drift"] == -found["brightness_trend"]
    assert found["colour_drift"] < 0.1
    assert found["saturation_drift"] < 0.1
    assert colours(still)["brightness_drift"] < 0.01


def test_colours_that_burn_and_colours_that_turn_are_told_apart():
    still = 0.5 + 0.3 * (as_tensor(picture())[:, None].expand(-1, FRAMES, -1, -1) - 0.5)
    grey = still.mean(dim=0, keepdim=True)
    growing = torch.linspace(1, 2, FRAMES).view(1, -1, 1, 1)
    burnt = grey + growing * (still - grey)
    assert colours(burnt)["saturation_drift"] > 0.8 * colours(still)["saturation"]
    redder = still + torch.tensor([0.1, 0.0, 0.0]).view(3, 1, 1, 1) * torch.linspace(0, 1, FRAMES).view(1, -1, 1, 1)
    assert colours(redder)["colour_drift"] > 5
    assert colours(still)["colour_drift"] < 0.01


def test_a_clip_is_nearest_to_the_picture_it_shows():
    stills = [as_tensor(picture(seed)) for seed in range(3)]
    near = likeness_db(panned(picture(1), 2.0), stills)
    assert max(near) == near[1]


def test_features_see_a_clip_of_the_picture_as_nearer_than_one_of_another():
    cat, cup = (as_tensor(one.image.resize((SIDE, SIDE))) for one in read_pictures(listed("photographs"))[1:3])
    features = EfficientNetLite0()
    own, other = (features.figures(one[:, None].expand(-1, 2, -1, -1), cat) for one in (cat, cup))
    assert own["efficientnet_lite0_to_picture"] == pytest.approx(1, abs=1e-4)
    assert own["efficientnet_lite0_between_frames"] == pytest.approx(1, abs=1e-4)
    assert other["efficientnet_lite0_to_picture"] < 0.6


def test_a_clip_with_nan_is_refused_with_its_frame():
    clip = torch.rand(3, 4, 8, 8)
    clip[1, 2, 3, 3] = torch.nan
    with pytest.raises(ModelError, match=r"model x: frame 2 of its clip of cat\.png holds NaN or infinity"):
        check_clip(clip, "model x", "cat.png")


def test_motion_without_opencv_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *more, **options):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StillmotionError, match=r"motion: .*pip install 'stillmotion\[judge\]'"):
        motion(torch.rand(3, 2, 32, 32), FPS)


# ---------------------------------------------------------------------- models


class Maker:
    """Stands for a pipeline whose clips are made by a function of the picture and the seed."""

    default_size = (SIDE, SIDE)
    config = SimpleNamespace(guidance_range=None, image_guidance_scale=None, num_inference_steps=8, guidance_scale=5.0)
    config.distilled_guidance_scale = None
    device = "cpu"
    network = SimpleNamespace(dtype=torch.float32)
    networks = ()
    family = SimpleNamespace(  # an autoencoder that is the identity
        encode_clip=lambda _parts, clips: clips, drops_picture=False
    )
    parts = None
    scheduler = DDIMScheduler()

    def __init__(self, make):
        self.make = make

    def decode_latents(self, latents, chunk):
        return latents

    def __call__(self, image, prompt, *, generator, height, width, **_options):
        assert image.size == (width, height)
        return SimpleNamespace(frames=self.make(image, generator.initial_seed()).transpose(0, 1)[None])


def model(make, steps=8, passes=16, name="model", frames=FRAMES):
    info = SimpleNamespace(
        frames=frames, steps=steps, passes=passes, fps=FPS, takes_prompt=True, ending=lambda _picture: None
    )
    return SimpleNamespace(pipe=Maker(make), info=info, name=name)


PICTURES = [Picture(f"{seed}.png", picture(seed, SIDE + 30), "it moves") for seed in range(3)]


def of_speed(speed, spoil=lambda clip, _seed: clip):
    return lambda image, seed: spoil(panned(image, speed), seed)


def noisy(clip, seed):
    return (clip + 0.05 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def darker(clip, _seed):
    return clip * torch.linspace(1, 0.5, clip.shape[1]).view(1, -1, 1, 1)


def compared(student, **options):
    comparison = compare_on_pictures(
        model(student, steps=4, passes=4, name="student"), model(of_speed(2.0), name="teacher"), PICTURES, **options
    )
    failed = [result.name for result in check_pictures(comparison, load_gates()) if not result.passed]
    return comparison.student, failed


def test_a_student_that_makes_the_teachers_clips_passes_every_gate():
    student, failed = compared(of_speed(2.0))
    assert failed == []
    assert (student.psnr_to_teacher_db, student.ssim_to_teacher, student.own_picture_share) == (100, 1, 1)
    assert student.motion_of_teacher == student.saturation_of_teacher == 1
    assert (student.clips, student.steps, student.passes, student.diversity) == (3, 4, 4, None)


def still(image, _seed):
    return as_tensor(image)[:, None].expand(-1, FRAMES, -1, -1)


def of_another_picture(image, _seed):
    """A clip of the next of the three pictures."""
    cut = [one.image.crop((15, 15, 15 + SIDE, 15 + SIDE)) for one in PICTURES]
    number = min(range(3), key=lambda k: float((as_tensor(cut[k]) - as_tensor(image)).abs().mean()))
    return panned(cut[(number + 1) % 3], 2.0)


@pytest.mark.parametrize(
    ("complaint", "student", "gates"),
    [
        ("it stands still", still, {"motion_of_teacher_least"}),
        ("it is slow", of_speed(1.0), {"motion_of_teacher_least"}),
        ("it is hectic", of_speed(4.0), {"motion_of_teacher_most"}),
        ("it gets darker", of_speed(2.0, darker), {"brightness_drift_more"}),
        ("it is not my picture", of_another_picture, {"own_picture_share", "first_frame_loss_db"}),
    ],
)
def test_what_users_complain_about_fails_the_gate_that_is_about_it(complaint, student, gates):
    assert gates <= set(compared(student)[1]), complaint


def test_a_model_whose_clips_do_not_depend_on_the_seed_has_no_diversity():
    teacher = model(of_speed(2.0, noisy), name="teacher")
    found = {}
    for name, student in {"same": of_speed(2.0), "other": of_speed(2.0, noisy)}.items():
        comparison = compare_on_pictures(model(student, 4, 4), teacher, PICTURES[:2], seeds_per_clip=2)
        found[name] = comparison.student.diversity_of_teacher
        gates = {result.name: result.passed for result in check_pictures(comparison, load_gates())}
        assert gates["diversity_of_teacher"] == (name == "other")
    assert found["same"] == 0
    assert found["other"] == pytest.approx(1, abs=0.05)


def test_a_teacher_that_stands_still_is_no_measure_of_motion():
    comparison = compare_on_pictures(model(of_speed(2.0), 4, 4), model(still), PICTURES[:1])
    assert comparison.student.motion_of_teacher == 0
    assert comparison.student.own_picture_share is None  # of one picture there is no other


def test_a_model_that_makes_nan_is_refused_before_it_is_judged():
    with pytest.raises(ModelError, match=r"frame 0 of its clip of 0\.png holds NaN"):
        evaluate_on_pictures(model(lambda image, _seed: still(image, 0) * torch.nan), PICTURES)


def test_clips_of_another_length_and_no_pictures_are_refused():
    with pytest.raises(ModelError, match=r"frame by frame: teacher of 9 and short of 5 frames"):
        compare_on_pictures(model(still, name="short", frames=5), model(still, name="teacher"), PICTURES)
    with pytest.raises(ValueError, match="pictures: there is none"):
        evaluate_on_pictures(model(still), [])


# ---------------------------------------------------------------------- pictures and the command


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(2):
        picture(number).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text("a red circle moves right")
    return made


def test_photographs_come_from_a_package_and_a_folder_is_read_by_name(folder):
    photographs = read_pictures(listed("photographs"))
    assert len(photographs) == 8
    assert all(one.caption and min(one.image.size) >= 200 for one in photographs)
    assert [one.name for one in read_pictures(listed(str(folder))[:1])] == ["0.png"]


def test_a_folder_without_captions_or_with_a_damaged_picture_is_refused(folder):
    (folder / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(StillmotionError, match=r"1\.png: not a picture that can be read"):
        read_pictures(listed(str(folder)))
    (folder / "0.txt").unlink()
    with pytest.raises(StillmotionError, match=r"0\.png: has no caption"):
        read_pictures(listed(str(folder)))
    with pytest.raises(StillmotionError, match="no such folder"):
        listed(str(folder / "none"))


@pytest.mark.parametrize("kind", ["wan-2.2-a14b", "svd"])
def test_a_small_checkpoint_is_judged_beside_its_teacher_on_pictures(kind, folder, tmp_path, capsys):
    checkpoint = tmp_path / kind
    pipe = SMALL[kind]()
    pipe.save_pretrained(checkpoint)
    options = ["--pictures", str(folder), "--compare", str(checkpoint), "--gates", "default", "--json"]
    # A random network's clips fail some gate or other; what is asked of the command is its document.
    main(["evaluate", "--model", str(checkpoint), *options])
    result = json.loads(capsys.readouterr().out)
    assert list(result["comparison"]) == ["teacher", "undistilled_guided", "undistilled", "student"]
    assert result["comparison"]["student"]["motion_of_teacher"] in {1.0, 0.0}
    assert (result["clips"], result["psnr_to_teacher_db"], result["own_picture_share"]) == (
        2,
        100,
        pytest.approx(0.5, abs=0.5),
    )
    assert result["motion_accuracy"] is None
    assert {gate["name"] for gate in result["gates"]} >= {"motion_of_teacher_least", "first_frame_loss_db"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gates", "default"], "name the teacher, as in --compare FOLDER"),
        (["--compare"], "name the teacher, as in --compare FOLDER"),
        (["--compare", "a", "--teacher", "b"], "--compare a: --teacher names another, b"),
        (["--i3d", "x.pt"], "--i3d: FVD is a distance to true clips"),
    ],
)
def test_options_that_have_no_meaning_with_pictures_are_wrong_use(options, told, folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--model", "x", "--pictures", str(folder), *options])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_features_of_generated_clips_are_wrong_use(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--features"])
    assert caught.value.code == 2
    assert "--features: goes with --pictures" in capsys.readouterr().err


def test_a_file_with_limits_on_pictures_alone_is_read_and_one_without_is_named(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("pictures: {motion_of_teacher_least: 0.5}\n")
    assert load_gates(own).on_pictures().motion_of_teacher_least == 0.5
    own.write_text("steps: {4: {passes_ratio: 2}}\n")
    with pytest.raises(StillmotionError, match=r"own\.yaml: pictures: missing"):
        load_gates(own).on_pictures()
    own.write_text("pictures: {motion_of_teacher_least: .nan}\n")
    with pytest.raises(StillmotionError, match=r"own\.yaml: pictures\.motion_of_teacher_least: .*finite"):
        load_gates(own)
