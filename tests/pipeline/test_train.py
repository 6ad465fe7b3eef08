"""Training runs, goes on from where it was stopped, and draws what it says it draws."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from pipeline import ImageAnimationPipeline
from pipeline.clips import ClipGenerator
from pipeline.commands.cli import main
from pipeline.errors import StillmotionError
from pipeline.train.checkpoint import Checkpoint, end_of
from pipeline.train.linear_start import start_linear
from pipeline.train.settings import TeacherSettings, VaeSettings, learning_rate
from pipeline.train.stream import encoded_batches, frames
from pipeline.train.teacher import (
    TeacherTrainer,
    build_scheduler,
    draw_timesteps,
    motion_weight,
    train_teacher,
)
from pipeline.train.text import build_tokenizer
from pipeline.train.vae import build_vae, evaluate_vae, train_vae

from .conftest import files_of_at_most

VAE = VaeSettings(size=32, steps=2, batch=4)
TEACHER = TeacherSettings(size=32, frames=4, block_out_channels=(16, 16), steps=3, bind_steps=1, batch=2)


@pytest.fixture(scope="module")
def trained_vae(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    return out, train_vae(VAE, out)


@pytest.fixture
def out(trained_vae, tmp_path):
    """A run folder with a trained autoencoder."""
    AutoencoderKL.from_pretrained(trained_vae[0] / "vae").save_pretrained(tmp_path / "vae")
    return tmp_path


@pytest.fixture(scope="module")
def trained(trained_vae, tmp_path_factory):
    """A run folder with a trained teacher, too; tests leave it as it is."""
    folder = shutil.copytree(trained_vae[0], tmp_path_factory.mktemp("teacher") / "run")
    train_teacher(TEACHER, folder)
    return folder


def first_batch(out):
    """Clips as the teacher's training sees them."""
    vae = AutoencoderKL.from_pretrained(out / "vae").eval()
    return next(encoded_batches(TEACHER, vae, build_tokenizer(), seed=0, plain=False))


def pictures(size=32, count=32):
    return ClipGenerator(size, frames=2, seed=3).batch(count).clips[:, :, 0] * 2 - 1


def test_an_autoencoder_is_trained_and_saved(trained_vae):
    out, psnr = trained_vae
    vae = AutoencoderKL.from_pretrained(out / "vae")
    assert psnr > 15  # where it starts by construction; blank pictures have about 10
    assert evaluate_vae(vae, 32, clips=256) == pytest.approx(psnr, abs=0.01)
    assert list((out / "vae").glob("*.safetensors"))


def test_latents_have_the_spread_of_the_noise(trained_vae):
    vae = AutoencoderKL.from_pretrained(trained_vae[0] / "vae")
    with torch.no_grad():
        latents = vae.encode(pictures(count=128)).latent_dist.mode() * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.15)


def test_the_linear_start_reconstructs_before_any_training():
    torch.manual_seed(0)
    vae = build_vae(VAE)
    before = evaluate_vae(vae, 32, clips=32)
    start_linear(vae, pictures(count=128))
    assert evaluate_vae(vae, 32, clips=32) > before + 5


def test_a_teacher_is_trained_and_saved_as_a_pipeline_that_loads(trained):
    loaded = ImageAnimationPipeline.from_pretrained(trained / "teacher")
    assert loaded.family.name == "i2vgen-xl"
    assert loaded.default_size == (32, 32)
    assert (loaded.config.num_frames, loaded.config.fps) == (TEACHER.frames, TEACHER.fps)
    assert all(torch.isfinite(parameter).all() for parameter in loaded.unet.parameters())


def test_a_teacher_that_was_stopped_goes_on_from_its_checkpoint(trained, tmp_path, caplog):
    out = shutil.copytree(trained, tmp_path / "run")
    assert torch.load(out / "teacher.pt", weights_only=True)["step"] == 3
    caplog.set_level(logging.INFO, logger="pipeline.train.teacher")
    train_teacher(replace(TEACHER, steps=5), out, log_every=1)
    steps = [int(m[1]) for m in (re.match(r"step (\d+)/5 ", r.getMessage()) for r in caplog.records) if m]
    assert steps == [4, 5]
    assert torch.load(out / "teacher.pt", weights_only=True)["step"] == 5


def test_refining_starts_from_the_trained_weights_and_leaves_them_where_they_are(trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    settings = replace(TEACHER, refine_steps=1, learning_rate=0.0)
    before = ImageAnimationPipeline.from_pretrained(out / "teacher")
    refined = train_teacher(settings, out, start=out / "teacher")
    assert (out / "refined" / "model_index.json").is_file()
    for name in ("unet", "text_encoder", "image_encoder"):
        mine, theirs = getattr(refined, name).state_dict(), getattr(before, name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    moved = train_teacher(replace(settings, refine_steps=2, learning_rate=1e-3), out, start=out / "teacher")
    assert any(not torch.equal(a, b) for a, b in zip(moved.unet.parameters(), before.unet.parameters(), strict=True))


def test_refining_drops_conditions_and_draws_all_timesteps_from_its_first_step(trained):
    vae = AutoencoderKL.from_pretrained(trained / "vae")
    assert TeacherTrainer(TEACHER, vae).progress(0) is None
    trainer = TeacherTrainer(replace(TEACHER, refine_steps=4), vae, trained / "teacher")
    assert [trainer.progress(step) for step in range(4)] == [0, 0.25, 0.5, 0.75]


def test_refining_without_a_teacher_says_what_to_train_first(out, capsys):
    assert main(["train", "refine", "--out", str(out), "-p", "refine_steps", "1"]) == 1
    assert "train the teacher first: python -m pipeline train teacher" in capsys.readouterr().err


def test_the_clock_stops_training_and_keeps_what_was_learned(out):
    train_teacher(TEACHER, out, minutes=0)
    assert torch.load(out / "teacher.pt", weights_only=True)["step"] == 0
    assert (out / "teacher" / "model_index.json").is_file()


def test_each_part_of_the_teacher_learns_and_the_autoencoder_does_not(out):
    vae = AutoencoderKL.from_pretrained(out / "vae")
    trainer = TeacherTrainer(TEACHER, vae)
    batch = first_batch(out)
    before = {name: p.detach().clone() for name, p in trainer.modules.named_parameters()}
    frozen = {name: p.detach().clone() for name, p in trainer.pipe.vae.named_parameters()}
    losses = [trainer.step(batch, step) for step in range(3)]
    assert all(0 < loss < 100 for loss in losses)
    changed = {name.split(".")[0] for name, p in trainer.modules.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"unet", "text", "image"}
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.pipe.vae.named_parameters())


def test_the_first_steps_lower_the_loss_on_one_batch(out):
    trainer = TeacherTrainer(replace(TEACHER, steps=1000), AutoencoderKL.from_pretrained(out / "vae"))
    batch = first_batch(out)

    def loss():
        trainer.random.manual_seed(5)  # the same noise and timesteps
        with torch.no_grad():
            return float(trainer.loss(batch, progress=0.0))

    before = loss()
    for step in range(100, 108):  # past the warm-up of the learning rate
        trainer.step(batch, step)
    assert loss() < before


def test_a_probe_gives_an_accuracy_and_a_psnr(out):
    trainer = TeacherTrainer(TEACHER, AutoencoderKL.from_pretrained(out / "vae"))
    weights = [p.detach().clone() for p in trainer.modules.parameters()]
    accuracy, psnr = trainer.probe(clips=4)
    assert 0 <= accuracy <= 1
    assert 0 < psnr < 100
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.modules.parameters(), strict=True))


def test_a_batch_of_training_has_the_shapes_that_the_unet_takes(out):
    batch = first_batch(out)
    assert tuple(batch.latents.shape) == (2, 4, 4, 8, 8)
    assert tuple(batch.pixels.shape) == (2, 3, 32, 32)
    assert batch.tokens.shape == batch.blank_tokens.shape
    assert torch.isfinite(batch.latents).all()
    made = next(frames(32, 6, seed=0))
    assert tuple(made.shape) == (6, 3, 32, 32)


def test_the_schedule_ends_in_pure_noise_and_its_grids_of_32_and_8_steps_are_exact():
    scheduler = build_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-7)
    for steps in (32, 8):
        scheduler.set_timesteps(steps)
        grid = scheduler.timesteps.tolist()
        assert grid == list(range(1023, 0, -1024 // steps))
        assert len(grid) == steps


def test_timesteps_begin_near_the_end_of_the_schedule_and_spread_out_as_training_goes_on():
    drawn = [
        draw_timesteps(20_000, progress, 1024, torch.Generator().manual_seed(0)) for progress in (None, 0.0, 0.5, 1.0)
    ]
    for timesteps in drawn:
        assert int(timesteps.min()) >= 0
        assert int(timesteps.max()) == 1023
    at_end = [float((timesteps == 1023).float().mean()) for timesteps in drawn]
    assert at_end[0] > 0.8  # while motion is bound to the caption, which says what the clip does only there
    assert at_end == sorted(at_end, reverse=True)
    assert at_end[-1] < 0.25
    last = torch.histc(drawn[-1].float(), bins=4, min=0, max=1024) / 20_000
    assert float(last.min()) > 0.1


def test_timesteps_are_drawn_from_the_generator_given():
    one, other = (draw_timesteps(50, 0.5, 1024, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, other)


def test_what_moves_weighs_more_while_motion_is_bound_and_the_same_at_the_end():
    clip = torch.zeros(1, 4, 3, 2, 2)
    clip[:, :, 2, 0, 0] = 1.0  # one place changes in the last frame
    weights = [motion_weight(clip, progress) for progress in (None, 0.0, 0.45, 1.0)]
    moving = [float(weight[0, 0, 2, 0, 0]) for weight in weights]
    assert moving == pytest.approx([5.0, 5.0, 3.0, 1.0])
    for weight in weights:
        assert weight.shape == (1, 1, 3, 2, 2)
        assert int((weight != 1).sum()) <= 1


def test_no_condition_is_dropped_while_motion_is_bound(out):
    trainer = TeacherTrainer(
        replace(TEACHER, drop_text=0.0, drop_image=0.0, drop_both=1.0),
        AutoencoderKL.from_pretrained(out / "vae"),
    )
    batch = first_batch(out)
    bound, after = trainer.cond(batch, dropping=False), trainer.cond(batch, dropping=True)
    assert float(bound["image_latents"].abs().min(dim=1).values.max()) > 0
    assert float(after["image_latents"].abs().max()) == 0
    assert not torch.equal(bound["text"], after["text"])


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 1000, 1e-3, warmup=100) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5)


def test_a_checkpoint_puts_every_part_back(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    Checkpoint(tmp_path / "run" / "c.pt", model=model, optimizer=optimizer).save(17)

    other = torch.nn.Linear(3, 3)
    restored = torch.optim.AdamW(other.parameters())
    assert Checkpoint(tmp_path / "run" / "c.pt", model=other, optimizer=restored).load() == 17
    assert torch.equal(model.weight, other.weight)
    assert restored.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_nothing_to_restore_is_step_zero(tmp_path):
    assert Checkpoint(tmp_path / "none.pt").load() == 0


def test_a_save_that_fails_leaves_the_last_good_checkpoint(tmp_path):
    good = Checkpoint(tmp_path / "c.pt", model=torch.nn.Linear(2, 2))
    good.save(1)
    broken = Checkpoint(tmp_path / "c.pt", model=torch.nn.Linear(2, 2), other=object())
    with pytest.raises(AttributeError):
        broken.save(2)
    assert good.load() == 1


@pytest.mark.parametrize("size", [0, 300])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(tmp_path, size):
    model = torch.nn.Linear(64, 64)
    checkpoint = Checkpoint(tmp_path / "c.pt", model=model)
    checkpoint.save(1)
    with files_of_at_most(size), pytest.raises(StillmotionError, match=r"^.*c\.pt: cannot be written \(") as caught:
        checkpoint.save(2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert checkpoint.load() == 1


def test_a_deadline_of_none_never_passes_and_one_of_zero_has():
    assert end_of(None) == math.inf
    assert end_of(0) <= time.monotonic() < end_of(10)
