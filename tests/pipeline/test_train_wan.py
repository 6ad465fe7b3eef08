"""The teacher in Wan's classes: training goes on where it stopped, and diffusers reads the result."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from torch import nn

from pipeline import ImageAnimationPipeline
from pipeline.clips.scenes import SceneGenerator
from pipeline.commands.cli import main
from pipeline.train.attention import PlainAttention
from pipeline.train.video_vae import (
    VideoVaeSettings,
    build_video_vae,
    decode_unclamped,
    evaluate_video_vae,
    start_linear,
    train_video_vae,
)
from pipeline.train.wan_teacher import (
    WanTeacherSettings,
    WanTeacherTrainer,
    build_tokenizer,
    draw_levels,
    encoded,
    train_wan_teacher,
)

VAE = VideoVaeSettings(
    size=32, frames=5, channels=8, base=16, decoder_base=16, still_steps=1, clip_steps=1, batch=2, judged=8
)
TEACHER = WanTeacherSettings(size=32, frames=5, width=64, layers=1, text_width=32, steps=3, bind_steps=1, batch=2)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run folder with a trained autoencoder, and what was found of it."""
    folder = tmp_path_factory.mktemp("wan")
    (folder / "figures.json").write_text(json.dumps(train_video_vae(VAE, folder)))
    return folder


@pytest.fixture(scope="module")
def vae(out):
    return AutoencoderKLWan.from_pretrained(out / "wan-vae").eval()


def pictures(count: int = 40):
    source = SceneGenerator(32, 2, seed=5)
    return torch.stack([source.scene().clip[:, 0] for _ in range(count)]) * 2 - 1


def test_the_autoencoder_starts_with_the_mean_colours_of_its_cells():
    torch.manual_seed(0)
    vae, seen = build_video_vae(VAE), pictures()
    random = evaluate_video_vae(vae, VAE, clips=2)
    start_linear(vae, seen)
    started = evaluate_video_vae(vae, VAE, clips=2)
    assert all(started[name] > random[name] + 4 for name in started)
    x = seen[:, :, None]
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mode()
        made = decode_unclamped(vae, latents)
    cells = nn.functional.avg_pool2d(x[:, :, 0], 8)
    assert float((nn.functional.avg_pool2d(made[:, :, 0], 8) - cells).abs().mean()) < 0.1
    spread = latents.transpose(0, 1).flatten(1).std(dim=1)
    assert float(spread.square().mean().sqrt()) == pytest.approx(1, abs=0.2)
    assert float(spread[0]) > float(spread[-1])  # what more pixels depend on is larger


def test_what_the_decoder_is_trained_on_is_what_decode_gives(vae):
    with torch.no_grad():
        z = torch.randn(1, 8, 3, 4, 4)
        assert torch.allclose(decode_unclamped(vae, z).clamp(-1, 1), vae.decode(z).sample, atol=1e-5)


def test_the_autoencoder_is_saved_with_the_scale_of_its_latents(out, vae):
    figures = json.loads((out / "figures.json").read_text())
    assert figures.keys() == {"clips_db", "first_frame_db", "last_frame_db", "photographs_db"}
    assert all(value > 10 for value in figures.values())
    assert len(vae.config.latents_std) == 8
    assert all(0 < value < 20 for value in vae.config.latents_std)


@pytest.mark.parametrize("held", [True, False], ids=["first frame held", "picture beside the noise"])
def test_training_goes_on_where_it_stopped_and_diffusers_reads_the_teacher(out, tmp_path, held):
    (tmp_path / "wan-vae").symlink_to(out / "wan-vae")
    own = replace(TEACHER, held=held)
    train_wan_teacher(own, tmp_path, minutes=0)
    assert torch.load(tmp_path / "wan-teacher.pt")["step"] == 0
    pipe = train_wan_teacher(own, tmp_path)
    assert torch.load(tmp_path / "wan-teacher.pt")["step"] == 3
    scene = SceneGenerator(32, 5, seed=1).scene()

    def clip(one):
        return one(
            scene.picture(), scene.caption, height=32, width=32, num_frames=5, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        ).frames  # fmt: skip

    again = ImageAnimationPipeline.from_pretrained(tmp_path / "wan-teacher")
    assert (again.config.num_inference_steps, again.config.num_frames, again.config.fps) == (40, 5, 12)
    made = clip(again)
    assert torch.allclose(made, clip(pipe), atol=1e-5)
    if held:
        return  # diffusers' own loop counts patches of two cells where the first frame is held
    theirs = WanImageToVideoPipeline.from_pretrained(tmp_path / "wan-teacher")
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs.transformer).__name__ == "WanTransformer3DModel"
    made_by_theirs = theirs(
        scene.picture(), scene.caption, again.family.negative_prompt, height=32, width=32, num_frames=5,
        num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames  # fmt: skip
    assert torch.allclose(made_by_theirs, made, atol=1e-3)


def test_one_key_stands_for_all_padding_of_a_caption(vae):
    trainer = WanTeacherTrainer(replace(TEACHER, held=False), vae)
    nn.init.normal_(trainer.pipe.transformer.proj_out.weight)
    source = SceneGenerator(32, 5, seed=2)
    batch = encoded(trainer.pipe, [source.scene() for _ in range(2)])
    family, transformer, z, t = (
        trainer.pipe.family,
        trainer.pipe.transformer,
        torch.randn(batch.latents.shape),
        torch.tensor(700.0),
    )
    with torch.no_grad():
        whole = family.predict(
            transformer, z, t, {**family.encode_text(trainer.pipe.parts, batch.captions), **batch.picture}
        )
        transformer.set_attn_processor(dict(trainer.folded))
        assert all(isinstance(one, PlainAttention) for one in transformer.attn_processors.values())
        folded = family.predict(transformer, z, t, {"text": trainer.text(batch.captions), **batch.picture})
    assert float((whole - folded).abs().max()) < 1e-5 * float(whole.abs().max())


def test_a_step_lowers_the_loss_and_leaves_the_autoencoder_alone(vae):
    before = [parameter.clone() for parameter in vae.parameters()]
    trainer = WanTeacherTrainer(replace(TEACHER, steps=400, bind_steps=400, learning_rate=1e-2), vae)
    source = SceneGenerator(32, 5, seed=2, plain=True)
    batch = encoded(trainer.pipe, [source.scene() for _ in range(2)])
    losses = [trainer.step(batch, step) for step in range(40)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(one, other) for one, other in zip(before, vae.parameters(), strict=True))
    assert trainer.probe(scenes=2).keys() == {"motion", "first"}


def test_noise_levels_begin_at_one_and_then_follow_the_sampling_grid():
    drawn = {
        progress: draw_levels(8000, progress, 3.0, torch.Generator().manual_seed(0)) for progress in (None, 0.0, 1.0)
    }
    at_one = {progress: float((levels == 1).float().mean()) for progress, levels in drawn.items()}
    assert at_one[None] > 0.85 > at_one[0.0] > at_one[1.0] > 0.05
    for levels in drawn.values():
        assert float(levels.min()) >= 0
        assert float(levels.max()) <= 1
    free = drawn[1.0][drawn[1.0] < 1]
    assert float(free.median()) == pytest.approx(0.75, abs=0.02)  # 3 u / (1 + 2 u) of u = .5


def test_words_of_captions_are_tokens_of_their_own_and_other_text_is_spelled():
    tokenizer = build_tokenizer()
    assert len(tokenizer("a red ball rises slowly").input_ids) == 6
    assert len(tokenizer("zeppelin").input_ids) > 5
    assert tokenizer.unk_token_id not in tokenizer("The Zeppelin, it's 20% off!").input_ids


def test_the_command_trains_both_parts_and_names_what_is_missing(tmp_path, capsys):
    assert main(["train", "wan-teacher", "--out", str(tmp_path / "none")]) == 1
    assert "python -m pipeline train wan-vae" in capsys.readouterr().err
    values = {**vars(VAE), "clip_steps": 0, "channels": 4}
    small = [word for name, value in values.items() for word in ("-p", name, str(value))]
    assert main(["train", "wan-vae", "--out", str(tmp_path / "run"), *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wan_vae"]["photographs_db"] > 5
