"""The same frames as diffusers' own pipelines, from the same seed and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)

TOLERANCE = 1e-4


def noise_generator(seed):
    return torch.Generator().manual_seed(seed)


def difference(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape
    # Frames that are all black or white would agree whatever the model did.
    assert one.std() > 0.005
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max())


def run_both(reference, ours, image, prompt, *, seed, fps=None, **arguments):
    """Frames of both, each drawn from the same two sources of random numbers."""
    torch.manual_seed(seed)  # I2VGen-XL samples the picture's latents from the global generator
    theirs = {} if fps is None else {"target_fps": fps}
    expected = reference(image=image, prompt=prompt, generator=noise_generator(seed), **theirs, **arguments).frames
    torch.manual_seed(seed)
    own = {} if fps is None else {"fps": fps}
    given = ours(image, prompt, generator=noise_generator(seed), image_guidance_scale=None, **own, **arguments).frames
    return expected, given


SIZES = [(32, 32, 8), (32, 48, 5), (48, 32, 3), (40, 24, 16), (32, 32, 1)]
PROMPTS = [
    "a red circle moves right",
    "",
    "Ünïcode, 猫 and far more words than the text encoder of this model can ever take",
]


@pytest.mark.parametrize(("height", "width", "frames"), SIZES)
def test_i2vgen_gives_the_frames_of_diffusers_for_any_size_and_frame_count(
    i2vgen_reference, i2vgen, picture, height, width, frames
):
    expected, given = run_both(
        i2vgen_reference,
        i2vgen,
        picture(50, 40),
        PROMPTS[0],
        seed=3,
        fps=8,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=3,
        clip_skip=None,
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("seed", [0, 2**31])
def test_i2vgen_gives_the_frames_of_diffusers_for_any_prompt_and_seed(i2vgen_reference, i2vgen, picture, prompt, seed):
    expected, given = run_both(
        i2vgen_reference,
        i2vgen,
        picture(32, 32, seed=4),
        prompt,
        seed=seed,
        fps=16,
        height=32,
        width=32,
        num_frames=4,
        num_inference_steps=4,
        clip_skip=None,
        negative_prompt="a blue square",
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 9.0])
def test_i2vgen_gives_the_latents_of_diffusers_for_any_guidance(i2vgen_reference, i2vgen, picture, scale):
    expected, given = run_both(
        i2vgen_reference,
        i2vgen,
        picture(),
        PROMPTS[0],
        seed=1,
        fps=8,
        height=32,
        width=32,
        num_frames=4,
        num_inference_steps=3,
        guidance_scale=scale,
        clip_skip=None,
        output_type="latent",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.fixture
def repaired_reference(i2vgen_reference):
    """diffusers' pipeline asks for the inner model of the text encoder, which transformers 5 took away."""
    encoder = i2vgen_reference.text_encoder
    object.__setattr__(encoder, "text_model", encoder)  # past nn.Module, which would make a cycle of it
    yield i2vgen_reference
    object.__delattr__(encoder, "text_model")


@pytest.mark.parametrize("skip", [None, 1, 2])
def test_leaving_out_text_layers_gives_the_frames_of_diffusers(repaired_reference, i2vgen, picture, skip):
    expected, given = run_both(
        repaired_reference,
        i2vgen,
        picture(),
        PROMPTS[0],
        seed=5,
        fps=8,
        height=32,
        width=32,
        num_frames=4,
        num_inference_steps=3,
        clip_skip=skip,
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


def test_a_call_without_arguments_takes_what_i2vgen_is_published_with(repaired_reference, i2vgen, picture):
    torch.manual_seed(0)
    expected = repaired_reference(
        image=picture(), prompt=PROMPTS[0], height=32, width=32, generator=noise_generator(0), output_type="np"
    ).frames
    torch.manual_seed(0)
    given = i2vgen(picture(), PROMPTS[0], generator=noise_generator(0), output_type="np").frames
    assert difference(expected, given) <= TOLERANCE


def test_text_layers_make_a_difference(i2vgen, picture):
    frames = []
    for skip in (None, 1):
        torch.manual_seed(0)
        frames.append(
            i2vgen(
                picture(),
                PROMPTS[0],
                num_frames=2,
                num_inference_steps=2,
                clip_skip=skip,
                generator=noise_generator(0),
                output_type="np",
            ).frames
        )
    assert np.abs(frames[0] - frames[1]).max() > 10 * TOLERANCE


def test_i2vgen_gives_the_frames_of_diffusers_for_a_batch(i2vgen_reference, i2vgen, picture):
    expected, given = run_both(
        i2vgen_reference,
        i2vgen,
        [picture(seed=1), picture(seed=2)],
        PROMPTS[:2],
        seed=6,
        fps=8,
        height=32,
        width=32,
        num_frames=4,
        num_inference_steps=3,
        negative_prompt=["", "a ring"],
        clip_skip=None,
        output_type="np",
    )
    assert len(given) == 2
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize(("height", "width", "frames"), SIZES)
def test_pia_gives_the_frames_of_diffusers_for_any_size_and_frame_count(
    pia_reference, pia, picture, height, width, frames
):
    # diffusers does not fit the picture to the clip's size for PIA, so it is given one that fits.
    expected, given = run_both(
        pia_reference,
        pia,
        picture(width, height),
        PROMPTS[0],
        seed=3,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=3,
        guidance_scale=7.5,
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("seed", [0, 2**31])
def test_pia_gives_the_frames_of_diffusers_for_any_prompt_and_seed(pia_reference, pia, picture, prompt, seed):
    expected, given = run_both(
        pia_reference,
        pia,
        picture(seed=4),
        prompt,
        seed=seed,
        num_frames=4,
        num_inference_steps=4,
        guidance_scale=3.0,
        negative_prompt="a blue square",
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("motion_scale", range(9))
def test_pia_gives_the_latents_of_diffusers_for_each_motion_scale(pia_reference, pia, picture, motion_scale):
    expected, given = run_both(
        pia_reference,
        pia,
        picture(),
        PROMPTS[0],
        seed=1,
        num_frames=16,
        num_inference_steps=2,
        motion_scale=motion_scale,
        guidance_scale=7.5,
        output_type="latent",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("scale", [0.5, 1.0, 7.5])
def test_pia_gives_the_latents_of_diffusers_for_any_guidance(pia_reference, pia, picture, scale):
    expected, given = run_both(
        pia_reference,
        pia,
        picture(),
        PROMPTS[0],
        seed=1,
        num_frames=4,
        num_inference_steps=3,
        guidance_scale=scale,
        output_type="latent",
    )
    assert difference(expected, given) <= TOLERANCE


def test_pia_gives_the_frames_of_diffusers_for_a_batch_with_a_generator_each(pia_reference, pia, picture):
    images = [picture(seed=1), picture(seed=2)]
    arguments = {"num_frames": 4, "num_inference_steps": 3, "guidance_scale": 7.5, "output_type": "np"}
    expected = pia_reference(
        image=images, prompt=PROMPTS[:2], generator=[noise_generator(1), noise_generator(2)], **arguments
    ).frames
    given = pia(images, PROMPTS[:2], generator=[noise_generator(1), noise_generator(2)], **arguments).frames
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("family", ["i2vgen", "pia"])
def test_other_schedulers_give_the_frames_of_diffusers(request, picture, family, scheduler):
    reference, ours = request.getfixturevalue(f"{family}_reference"), request.getfixturevalue(family)
    made = scheduler.from_config(reference.scheduler.config)
    reference.register_modules(scheduler=made)
    ours.register_modules(scheduler=scheduler.from_config(ours.scheduler.config))
    expected, given = run_both(
        reference,
        ours,
        picture(),
        PROMPTS[0],
        seed=2,
        height=32,
        width=32,
        num_frames=4,
        num_inference_steps=4,
        guidance_scale=4.0,
        clip_skip=None,
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


STOCHASTIC = {
    "DDIM, eta 1": (DDIMScheduler, 1.0),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, 0.0),
    "LCM": (LCMScheduler, 0.0),
    "DPM-Solver SDE": (lambda **config: DPMSolverMultistepScheduler(**config, algorithm_type="sde-dpmsolver++"), 0.0),
}


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("family", ["i2vgen", "pia"])
def test_solvers_that_draw_noise_at_each_step_give_the_frames_of_diffusers(request, picture, family, name):
    reference, ours = request.getfixturevalue(f"{family}_reference"), request.getfixturevalue(family)
    make, eta = STOCHASTIC[name]
    for pipe in (reference, ours):
        pipe.register_modules(scheduler=make(beta_schedule="scaled_linear"))
    expected, given = run_both(
        reference,
        ours,
        [picture(), picture(seed=1)] if family == "i2vgen" else picture(),
        PROMPTS[:2] if family == "i2vgen" else PROMPTS[0],
        seed=2,
        height=32,
        width=32,
        num_frames=3,
        num_inference_steps=4,
        guidance_scale=4.0,
        eta=eta,
        clip_skip=None,
        output_type="np",
    )
    assert difference(expected, given) <= TOLERANCE


@pytest.mark.parametrize("skip", [None, 1])
def test_pia_leaves_out_text_layers_of_the_prompt_alone_as_diffusers_does(pia_reference, pia, picture, skip):
    encoder = pia_reference.text_encoder
    object.__setattr__(encoder, "text_model", encoder)  # as `repaired_reference`
    try:
        expected, given = run_both(
            pia_reference, pia, picture(), PROMPTS[0], seed=5, num_frames=3, num_inference_steps=2,
            guidance_scale=4.0, clip_skip=skip, negative_prompt="a blue square", output_type="latent",
        )  # fmt: skip
    finally:
        object.__delattr__(encoder, "text_model")
    assert difference(expected, given) <= TOLERANCE


def test_a_call_without_arguments_takes_what_pia_is_published_with(pia_reference, pia, picture):
    arguments = {"num_frames": 4, "num_inference_steps": 3, "output_type": "latent"}
    expected = pia_reference(image=picture(), prompt=PROMPTS[0], generator=noise_generator(0), **arguments).frames
    given = pia(picture(), PROMPTS[0], generator=noise_generator(0), **arguments).frames
    assert difference(expected, given) <= TOLERANCE
    assert pia.config.guidance_scale == 7.5


def test_several_clips_of_a_prompt_are_those_of_diffusers(i2vgen_reference, i2vgen, picture):
    expected, given = run_both(
        i2vgen_reference,
        i2vgen,
        picture(),
        PROMPTS[0],
        seed=2,
        height=32,
        width=32,
        num_frames=3,
        num_inference_steps=2,
        num_videos_per_prompt=3,
        clip_skip=None,
        output_type="latent",
    )
    assert given.shape[0] == 3
    assert difference(expected, given) <= TOLERANCE


def test_added_noise_of_the_solver_comes_from_the_generator(pia_reference, pia, picture):
    expected, given = run_both(
        pia_reference,
        pia,
        picture(),
        PROMPTS[0],
        seed=2,
        num_frames=4,
        num_inference_steps=3,
        eta=0.7,
        guidance_scale=4.0,
        output_type="latent",
    )
    assert difference(expected, given) <= TOLERANCE
