"""The teacher in Wan's classes: training goes on where it stopped, and diffusers reads the result."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import ImageAnimationPipeline
from pipeline.clips.scenes import SceneGenerator
from pipeline.commands.cli import main
from pipeline.train.attention import PlainAttention
from pipeline.train.muon import Muon, orthogonal
from pipeline.train.small_wan import build_tokenizer
from pipeline.train.teacher import (
    TeacherSettings,
    TeacherTrainer,
    draw_levels,
    encoded,
    train_teacher,
)
from pipeline.train.vae import (
    SingleFrames,
    VaeSettings,
    build_vae,
    decode_unclamped,
    evaluate_vae,
    start_linear,
    train_vae,
)

VAE = VaeSettings(
    size=32, frames=5, channels=8, base=16, decoder_base=16, still_steps=1, clip_steps=1, batch=2, judged=8
)
TEACHER = TeacherSettings(size=32, frames=5, width=64, layers=1, text_width=32, steps=3, bind_steps=1, batch=2)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run folder with a trained autoencoder, and what was found of it."""
    folder = tmp_path_factory.mktemp("wan")
    (folder / "figures.json").write_text(json.dumps(train_vae(VAE, folder)))
    return folder


@pytest.fixture(scope="module")
def vae(out):
    return AutoencoderKLWan.from_pretrained(out / "vae").eval()


def pictures(count: int = 40):
    source = SceneGenerator(32, 2, seed=5)
    return torch.stack([source.scene().clip[:, 0] for _ in range(count)]) * 2 - 1


def test_the_autoencoder_starts_with_the_mean_colours_of_its_cells():
    torch.manual_seed(0)
    vae, seen = build_vae(VAE), pictures()
    random = evaluate_vae(vae, VAE, clips=2)
    start_linear(vae, seen)
    started = evaluate_vae(vae, VAE, clips=2)
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
    (tmp_path / "vae").symlink_to(out / "vae")
    own = replace(TEACHER, held=held)
    train_teacher(own, tmp_path, minutes=0)
    assert torch.load(tmp_path / "teacher.pt")["step"] == 0
    pipe = train_teacher(own, tmp_path)
    assert torch.load(tmp_path / "teacher.pt")["step"] == 3
    scene = SceneGenerator(32, 5, seed=1).scene()

    def clip(one):
        return one(
            scene.picture(), scene.caption, height=32, width=32, num_frames=5, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0), output_type="latent",
        ).frames  # fmt: skip

    again = ImageAnimationPipeline.from_pretrained(tmp_path / "teacher")
    assert (again.config.num_inference_steps, again.config.num_frames, again.config.fps) == (40, 5, 12)
    made = clip(again)
    assert torch.allclose(made, clip(pipe), atol=1e-5)
    if held:
        return  # diffusers' own loop counts patches of two cells where the first frame is held
    theirs = WanImageToVideoPipeline.from_pretrained(tmp_path / "teacher")
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs.transformer).__name__ == "WanTransformer3DModel"
    made_by_theirs = theirs(
        scene.picture(), scene.caption, again.family.negative_prompt, height=32, width=32, num_frames=5,
        num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).frames  # fmt: skip
    assert torch.allclose(made_by_theirs, made, atol=1e-3)


def test_one_key_stands_for_all_padding_of_a_caption(vae):
    trainer = TeacherTrainer(replace(TEACHER, held=False), vae)
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
    trainer = TeacherTrainer(replace(TEACHER, steps=400, bind_steps=400, learning_rate=1e-2), vae)
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
    def train(*words):
        return main(["train", *words, "--out", str(tmp_path / "run"), "--json"])

    assert train("teacher") == 1
    assert "python -m pipeline train vae" in capsys.readouterr().err
    values = {**vars(VAE), "clip_steps": 0, "channels": 4}
    small = [word for name, value in values.items() for word in ("-p", name, str(value))]
    assert train("vae", *small) == 0
    assert json.loads(capsys.readouterr().out)["vae"]["photographs_db"] > 5
    for words, said in ((small, "name the part"), (["vae", "--start", "x"], "--start: goes with the part teacher")):
        with pytest.raises(SystemExit) as wrong:
            train(*words)
        assert wrong.value.code == 2
        assert said in capsys.readouterr().err


def test_training_goes_on_from_a_trained_teacher_and_its_autoencoder(out, tmp_path, capsys):
    (tmp_path / "vae").symlink_to(out / "vae")
    trained = train_teacher(TEACHER, tmp_path)
    trainer = TeacherTrainer(TEACHER, AutoencoderKLWan.from_pretrained(out / "vae"), start=tmp_path / "teacher")
    assert [trainer.progress(step) for step in (0, 3)] == [0, 1]  # no motion is bound
    mine, theirs = trainer.pipe.transformer.state_dict(), trained.transformer.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    command = [
        "train",
        "teacher",
        "--start",
        str(tmp_path / "teacher"),
        "--out",
        str(tmp_path / "more"),
        "--minutes",
        "0",
    ]
    assert main(command) == 1  # of another size than the settings say
    assert "its transformer has another shape" in capsys.readouterr().err


def test_a_frame_without_a_past_is_convolved_as_a_picture():
    torch.manual_seed(0)
    conv = WanCausalConv3d(3, 4, 3, padding=1)
    x = torch.randn(2, 3, 1, 8, 8)
    assert torch.allclose(SingleFrames(conv)(x), conv(x), atol=1e-6)
    clip, past = torch.randn(2, 3, 2, 8, 8), torch.randn(2, 3, 2, 8, 8)
    assert torch.equal(SingleFrames(conv)(clip, past), conv(clip, past))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(2, 12), columns=st.integers(2, 12))
def test_an_update_of_muon_is_orthogonal_and_leads_the_way_of_the_gradient(seed, rows, columns):
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    made = orthogonal(matrices, steps=12)
    values = torch.linalg.svdvals(made)
    assert float(values.max()) < 1.3
    assert float((made * matrices).sum()) > 0
    theirs = torch.optim._muon._zeropower_via_newtonschulz(matrices[0], (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert float((orthogonal(matrices)[0] - theirs.float()).abs().max()) < 0.1  # theirs is in bfloat16


def test_muon_steps_as_pytorchs_own():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    pair = (
        Muon([ours], lr=0.1, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        gradient = torch.randn(6, 4)
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=0.03)
