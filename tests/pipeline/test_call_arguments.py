"""What users of diffusers expect of a call: clips for each prompt, embeddings for texts, tensors for callbacks."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, RePaintScheduler
from torch import Tensor

from pipeline import ImageAnimationPipeline
from pipeline.errors import ModelError
from pipeline.serve.engine import load_pipeline

PROMPT, OTHER = "a red circle moves right", "a blue ring grows"


def latents_of(pipe: ImageAnimationPipeline, *arguments: Any, seed: int = 0, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    given = {"generator": torch.Generator().manual_seed(seed), "num_frames": 2, "num_inference_steps": 2, **options}
    return pipe(*arguments, output_type="latent", **given).frames


@pytest.mark.parametrize(("text", "image"), [(0.0, 1.0), (0.0, 0.0)], ids=["image alone", "neither"])
def test_a_branch_that_is_alone_does_not_bear_the_prompt(pipe, picture, text, image):
    """As notebook 01 shows each branch by itself."""
    scales = {"guidance_scale": text, "image_guidance_scale": image}
    one, other = (latents_of(pipe, picture(), prompt, **scales) for prompt in (PROMPT, OTHER))
    assert torch.equal(one, other)
    assert not torch.equal(one, latents_of(pipe, picture(), PROMPT, guidance_scale=1.0, image_guidance_scale=1.0))
    negative = latents_of(pipe, picture(), PROMPT, negative_prompt=OTHER, **scales)
    assert not torch.equal(one, negative)


def test_the_prompt_alone_does_not_need_the_negative_one(pipe, picture):
    scales = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
    one, other = (latents_of(pipe, picture(), PROMPT, negative_prompt=text, **scales) for text in ("", OTHER))
    assert torch.equal(one, other)


@pytest.mark.parametrize("scales", [{}, {"guidance_scale": 3.0, "image_guidance_scale": 1.5}])
def test_embeddings_give_what_their_texts_give(pipe, picture, scales):
    images = [picture(), picture(seed=1)]
    expected = latents_of(pipe, images, [PROMPT, OTHER], negative_prompt="a ring", **scales)
    skip = pipe.default_clip_skip
    negative_skip = skip if pipe.family.skips_layers_of_negative else None
    given = latents_of(
        pipe,
        images,
        prompt_embeds=pipe.encode_prompt([PROMPT, OTHER], skip),
        negative_prompt_embeds=pipe.encode_prompt(["a ring"] * 2, negative_skip),
        **scales,
    )
    assert torch.allclose(given, expected, atol=1e-6)


def test_clips_of_a_prompt_stand_one_after_the_other(pipe, picture):
    images, seeds = [picture(), picture(seed=1)], [4, 5, 6, 7]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    together = latents_of(pipe, images, [PROMPT, OTHER], num_videos_per_prompt=2, generator=generators)
    for k, seed in enumerate(seeds):
        alone = [torch.Generator().manual_seed(seed)]
        one = latents_of(pipe, images[k // 2], (PROMPT, OTHER)[k // 2], generator=alone)
        assert torch.allclose(together[k], one[0], atol=1e-3)


def test_a_callback_is_given_the_tensors_that_it_names(pipe, picture):
    seen: list[set[str]] = []

    def note(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> None:
        seen.append(set(tensors))

    for names in (["latents"], []):
        latents_of(
            pipe, picture(), PROMPT, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names
        )  # fmt: skip
    assert seen == [{"latents"}] * 2 + [set()] * 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "prompt: give it, or prompt_embeds"),
        ({"prompt": PROMPT, "prompt_embeds": torch.zeros(1, 4, 32)}, "prompt_embeds: prompt is given too"),
        ({"prompt_embeds": torch.zeros(1, 4, 31)}, r"prompt_embeds: shape \(1, 4, 31\) is not"),
        ({"prompt_embeds": torch.zeros(2, 4, 32)}, "prompt: 2 prompts for 1 pictures"),
        ({"prompt_embeds": torch.zeros(1, 4, 32), "guidance_scale": 3.0}, "negative_prompt_embeds: .*as many tokens"),
        ({"prompt": PROMPT, "negative_prompt": 3}, "negative_prompt: not text"),
        ({"prompt": PROMPT, "num_videos_per_prompt": 0}, "num_videos_per_prompt: 0 is below 1"),
        (
            {"prompt": PROMPT, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback_on_step_end_tensor_inputs: 'prompt_embeds' is not one of latents",
        ),
    ],
)
def test_what_does_not_go_together_is_named(pipe, picture, arguments, text):
    with pytest.raises(ValueError, match=text):
        latents_of(pipe, picture(), **arguments)


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler is of another kind"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "of another kind"),
        (RePaintScheduler(), "RePaintScheduler wants original_image at each step"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused_wherever_it_comes_from(i2vgen, tmp_path, picture, scheduler, text):
    with pytest.raises(ValueError, match=f"^scheduler: .*{text}"):
        ImageAnimationPipeline(**{**i2vgen.components, "scheduler": scheduler})
    i2vgen.register_modules(scheduler=scheduler)
    with pytest.raises(ValueError, match=f"^scheduler: .*{text}"):
        latents_of(i2vgen, picture(), PROMPT)
    i2vgen.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=text):
        load_pipeline(tmp_path)


def test_loading_a_checkpoint_as_the_readme_does_warns_of_nothing(teacher_folder):
    code = f"from pipeline import ImageAnimationPipeline as P; P.from_pretrained({str(teacher_folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )  # fmt: skip
    # Bars of diffusers and transformers end in a carriage return or name what is loaded.
    said = [line for line in done.stderr.splitlines() if "Loading" not in line and line.strip()]
    assert said == []
