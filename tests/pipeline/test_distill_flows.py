"""Students of checkpoints of flow matching: one network or two, packed tokens, a first frame that is given."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipeline import ImageAnimationPipeline
from pipeline.bench.convergence import compared_samplers, latent_sampler, reference_latents
from pipeline.distill.algorithm import NotSplittable
from pipeline.distill.data import GeneratedSource
from pipeline.distill.passes import Networks, conditions, networks_of
from pipeline.distill.student import build_student, teacher_grid
from pipeline.distill.trainer import Distiller, DistillSettings
from pipeline.model.guidance import Guidance

from .small_checkpoints import SMALL

SETTINGS = DistillSettings(student_steps=3, teacher_steps=8, updates=2, learning_rate=1e-3)


def teacher_of(name: str, folder: Path) -> ImageAnimationPipeline:
    SMALL[name]().save_pretrained(folder / name)
    pipe = ImageAnimationPipeline.from_pretrained(folder / name)
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(num_frames=17 if name == "ltx" else 9, height=32, width=32)
    return pipe


def latents_of(pipe: ImageAnimationPipeline, source: GeneratedSource, steps: int | None = None) -> Tensor:
    examples, generator = source[1000], torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
    return pipe(examples.pictures, examples.captions if pipe.family.takes_prompt else None, **arguments).frames


@pytest.mark.parametrize("name", ["wan-2.1", "wan-2.2-a14b", "wan-2.2-ti2v", "ltx", "svd", "cogvideox"])
def test_a_student_is_trained_saved_and_sampled_in_its_own_few_passes(name, tmp_path):
    teacher = teacher_of(name, tmp_path)
    source = GeneratedSource(32, teacher.config.num_frames, 2, seed=1)
    adapters = name == "wan-2.1"
    settings = DistillSettings(**{**vars(SETTINGS), "lora_rank": 2 * adapters, "gradient_checkpointing": adapters})
    student = Distiller(teacher, source, settings, tmp_path / "training").train()
    for part, network in networks_of(teacher).items():
        before, after = network.state_dict(), networks_of(student)[part].state_dict()
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[key], after[key]) for key in before), part

    student.save_pretrained(tmp_path / "student")
    again = ImageAnimationPipeline.from_pretrained(tmp_path / "student")
    again.set_progress_bar_config(disable=True)
    made = latents_of(again, source)
    # Loaded weights lie elsewhere in memory, and sums may round differently there.
    assert torch.allclose(made, latents_of(student, source), atol=1e-5)
    assert made.isfinite().all()
    assert (again.config.num_inference_steps, len(again.scheduler.timesteps)) == (3, 3)
    assert again.scheduler.timesteps.tolist() == student.scheduler.config.timesteps


def test_a_first_frame_that_is_given_stays_and_is_not_learned(tmp_path):
    teacher = teacher_of("wan-2.2-ti2v", tmp_path)
    source = GeneratedSource(32, 9, 2, seed=1)
    distiller = Distiller(teacher, source, SETTINGS, tmp_path / "training")
    random = torch.Generator().manual_seed(0)
    given, student, hold = distiller.objective.passes(source[0], random)
    z = hold(torch.randn(2, *teacher.family.latent_shape(teacher.parts, 9, 32, 32), generator=random))
    times = torch.tensor([900.0, 300.0])
    for predict in (given, student):
        flow = predict(z, times, None)
        assert not flow[:, :, 0].any()
        assert flow[:, :, 1:].any()


def test_a_clip_goes_through_the_network_for_its_noise_level(tmp_path):
    teacher = teacher_of("wan-2.2-a14b", tmp_path)
    networks = Networks(teacher, networks_of(teacher))
    examples = GeneratedSource(32, 9, 2, seed=1)[0]
    random = torch.Generator().manual_seed(0)
    _, cond = conditions(teacher, examples, Guidance(1.0), random)
    z = torch.randn(2, *teacher.family.latent_shape(teacher.parts, 9, 32, 32), generator=random)
    with torch.no_grad():
        mixed = networks(z, torch.tensor([950.0, 100.0]), cond)
        for row, (time, name) in enumerate(((950.0, "transformer"), (100.0, "transformer_2"))):
            one = {key: tensor[row : row + 1] for key, tensor in cond.items()}
            alone = teacher.family.predict(networks.networks[name], z[row : row + 1], torch.tensor([time]), one)
            assert torch.allclose(mixed[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["svd", "cogvideox"])
def test_one_step_of_the_student_each_of_the_teachers_lands_where_the_teacher_does(name, tmp_path):
    """With the teacher's weights and all its steps, what is sampled is the teacher's own clip without guidance."""
    teacher = teacher_of(name, tmp_path)
    teacher.register_to_config(num_inference_steps=4, guidance_scale=1.0)
    same = build_student(teacher, networks_of(teacher), teacher_grid(teacher, 4))
    source = GeneratedSource(32, teacher.config.num_frames, 1, seed=1)
    own, made = latents_of(teacher, source), latents_of(same, source)
    assert torch.allclose(made, own, atol=2e-3 * float(own.abs().max()))


def test_noise_levels_that_are_not_known_are_refused_before_training(tmp_path):
    teacher = teacher_of("svd", tmp_path)
    teacher.scheduler = EDMEulerScheduler()
    with pytest.raises(NotSplittable, match="scheduler: EDMEulerScheduler has no betas"):
        Distiller(teacher, GeneratedSource(32, 9, 2), SETTINGS, tmp_path / "training")


def rmse(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt())


@pytest.mark.slow
def test_a_student_of_a_teacher_that_learned_is_nearer_to_it_than_one_that_did_not(tmp_path):
    """A Wan of two layers learns flow matching on generated clips; its autoencoder stays random."""
    torch.manual_seed(0)
    teacher, random = teacher_of("wan-2.2-ti2v", tmp_path), torch.Generator().manual_seed(0)
    teacher.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher.register_to_config(num_inference_steps=16, guidance_scale=1.0)
    source, family = GeneratedSource(32, 9, 8, seed=1), teacher.family
    known = []
    for number in range(16):
        examples = source[number]
        with torch.no_grad():
            clean = family.encode_clip(teacher.parts, examples.clips * 2 - 1).float()
        known.append((clean, conditions(teacher, examples, Guidance(1.0), random)[1]))
    network = teacher.transformer.requires_grad_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for update in range(400):
        clean, cond = known[update % len(known)]
        u = torch.rand(len(clean), 1, 1, 1, 1, generator=random)
        sigma, noise = 3 * u / (1 + 2 * u), torch.randn(clean.shape, generator=random)
        z = family.hold((1 - sigma) * clean + sigma * noise, cond)
        error = family.predict(network, z, 1000 * sigma.flatten(), cond) - (noise - clean)
        optimizer.zero_grad()
        error[:, :, 1:].square().mean().backward()
        optimizer.step()
    network.requires_grad_(requires_grad=False)

    examples = source[500]
    sample = latent_sampler(teacher, examples.pictures, examples.captions, seed=3)
    exact = reference_latents(sample, teacher.scheduler, 64)
    errors = {name: rmse(sample(one, 8), exact) for name, one in compared_samplers(teacher.scheduler).items()}
    assert errors["DPM-Solver++, uniform log-SNR"] < 0.7 * min(errors["Euler"], errors["UniPC"]), errors

    wanted = latents_of(teacher, source)
    settings = DistillSettings(updates=100, learning_rate=1e-4, ema_decay=0.9)
    for steps in (8, 4):
        untrained = build_student(teacher, networks_of(teacher), teacher_grid(teacher, steps))
        own = DistillSettings(**{**vars(settings), "student_steps": steps})
        student = Distiller(teacher, GeneratedSource(32, 9, 4, seed=2), own, tmp_path / str(steps)).train()
        before, after = (rmse(latents_of(one, source), wanted) for one in (untrained, student))
        gain_db = 20 * math.log10(before / after)
        assert gain_db > 2, (steps, gain_db)
