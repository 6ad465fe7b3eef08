"""What a call does: guidance branches, batches, limits, and stopping between steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import ImageAnimationPipeline
from pipeline.errors import Cancelled
from pipeline.model.families import Request

PROMPT = "a red circle moves right"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def unet_calls(pipe):
    """Batch size of each call of the U-Net."""
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    yield sizes
    handle.remove()


@pytest.mark.parametrize(
    ("text", "image", "passes"),
    [
        (3.0, 1.5, 3),
        (2.0, 2.0, 2),  # the branch of the picture alone cancels out
        (2.0, 1.0, 2),  # the branch without a picture does
        (1.0, 1.0, 1),
        (0.0, 0.0, 1),
        (5.0, None, 2),
        (1.0, None, 1),
    ],
)
def test_a_step_calls_the_unet_once_with_the_branches_that_count(pipe, picture, unet_calls, text, image, passes):
    pipe(
        [picture(), picture(seed=1)],
        [PROMPT, "a blue ring grows"],
        num_frames=2,
        num_inference_steps=3,
        guidance_scale=text,
        image_guidance_scale=image,
        output_type="latent",
    )
    assert unet_calls == [2 * passes] * 3


def eps_by_hand(pipe, image, latents, timestep, text_scale, image_scale):
    """The three branches as calls of their own, put together by the formula of the literature."""
    frames = latents.shape[2]
    height, width = (side * pipe.family.size_step(pipe.parts) for side in latents.shape[-2:])
    controls = {name: control.default for name, control in pipe.family.controls.items()}
    seen = pipe.family.encode_picture(pipe.parts, Request([image], frames, height, width, 8, controls=controls))
    zeros = {name: tensor if name == "fps" else torch.zeros_like(tensor) for name, tensor in seen.items()}

    def predict(prompt, view):
        cond = {"text": pipe.encode_prompt([prompt], None), **view}
        return pipe.family.predict(pipe.unet, latents, timestep, cond)

    uncond, image_only, full = predict("", zeros), predict("", seen), predict(PROMPT, seen)
    # No two of them agree, or a wrong weight would not show.
    for one, other in ((uncond, image_only), (image_only, full), (uncond, full)):
        assert (one - other).abs().max() > 1e-4
    return uncond + image_scale * (image_only - uncond) + text_scale * (full - image_only)


@pytest.mark.parametrize(("text_scale", "image_scale"), [(3.0, 1.5), (1.0, 4.0), (7.0, 0.5), (1.0, 1.0), (2.0, 0.0)])
def test_three_branches_give_what_three_passes_by_hand_give(pipe, picture, text_scale, image_scale):
    pipe.register_to_config(image_latents_mode="mode")  # no random numbers beside the noise
    noise = torch.randn(1, 4, 3, 8, 12, generator=seeded())
    given = pipe(
        picture(48, 32),
        PROMPT,
        height=32,
        width=48,
        num_frames=3,
        fps=8,
        num_inference_steps=3,
        guidance_scale=text_scale,
        image_guidance_scale=image_scale,
        clip_skip=None,
        latents=noise,
        output_type="latent",
    ).frames

    with torch.no_grad():
        pipe.scheduler.set_timesteps(3)
        sample = noise * pipe.scheduler.init_noise_sigma
        for timestep in pipe.scheduler.timesteps:
            eps = eps_by_hand(pipe, picture(48, 32), sample, timestep, text_scale, image_scale)
            sample = pipe.scheduler.step(eps, timestep, sample).prev_sample
    assert (given - sample).abs().max() < 1e-4


def test_the_image_branch_uses_the_picture(pipe, picture):
    def frames(image):
        torch.manual_seed(0)
        return pipe(
            image,
            PROMPT,
            num_frames=2,
            num_inference_steps=2,
            guidance_scale=1.0,
            image_guidance_scale=2.0,
            generator=seeded(),
            output_type="latent",
        ).frames

    assert (frames(picture(seed=1)) - frames(picture(seed=2))).abs().max() > 1e-3


def test_the_defaults_of_a_checkpoint_are_those_of_its_calls(i2vgen_parts, picture):
    pipe = ImageAnimationPipeline(
        **i2vgen_parts,
        image_latents_mode="mode",
        num_inference_steps=3,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        num_frames=5,
        fps=12,
    )
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(picture(), PROMPT, generator=seeded(), output_type="np").frames
    spelled = pipe(
        picture(),
        PROMPT,
        num_inference_steps=3,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        num_frames=5,
        fps=12,
        generator=seeded(),
        output_type="np",
    ).frames
    assert plain.shape == (1, 5, 32, 32, 3)
    assert np.array_equal(plain, spelled)
    classic = pipe(picture(), PROMPT, image_guidance_scale=None, generator=seeded(), output_type="np").frames
    assert np.abs(plain - classic).max() > 1e-3


def test_the_rate_is_told_to_the_model(i2vgen, picture):
    def frames(fps):
        torch.manual_seed(0)
        return i2vgen(
            picture(), PROMPT, fps=fps, num_frames=2, num_inference_steps=2, generator=seeded(), output_type="latent"
        ).frames

    assert (frames(4) - frames(30)).abs().max() > 1e-5


@pytest.mark.parametrize("image_scale", [None, 1.5])
def test_a_batch_gives_what_its_members_give_alone(pipe, picture, image_scale):
    pipe.register_to_config(image_latents_mode="mode")
    images = [picture(seed=1), picture(60, 40, seed=2), picture(seed=3)]
    prompts = [PROMPT, "", "the black heart jumps"]
    arguments = {
        "height": 32,
        "width": 40,
        "num_frames": 3,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "image_guidance_scale": image_scale,
        "output_type": "np",
    }
    together = pipe(images, prompts, generator=[seeded(k) for k in range(3)], **arguments).frames
    alone = [
        pipe(image, prompt, generator=seeded(k), **arguments).frames[0]
        for k, (image, prompt) in enumerate(zip(images, prompts, strict=True))
    ]
    assert np.abs(together - np.stack(alone)).max() <= 1e-4


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(pipe, picture):
    def frames(seed):
        torch.manual_seed(seed)
        return pipe(
            picture(), PROMPT, num_frames=3, num_inference_steps=2, generator=seeded(seed), output_type="np"
        ).frames

    assert np.array_equal(frames(1), frames(1))
    assert np.abs(frames(1) - frames(2)).max() > 1e-3


@pytest.mark.parametrize(
    ("output_type", "shape"),
    [("np", (1, 3, 32, 32, 3)), ("pt", (1, 3, 3, 32, 32)), ("latent", (1, 4, 3, 8, 8))],
)
def test_the_output_has_the_layout_that_was_asked_for(pipe, picture, output_type, shape):
    frames = pipe(picture(), PROMPT, num_frames=3, num_inference_steps=2, output_type=output_type).frames
    assert tuple(frames.shape) == shape
    if output_type != "latent":
        assert float(frames.min()) >= 0
        assert float(frames.max()) <= 1


def test_pil_output_is_a_list_of_frames_for_each_clip(pipe, picture):
    (clips,) = pipe(picture(), PROMPT, num_frames=3, num_inference_steps=2, return_dict=False)
    assert [[frame.size for frame in clip] for clip in clips] == [[(32, 32)] * 3]


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
def test_frames_do_not_depend_on_how_many_are_decoded_at_a_time(pipe, chunk):
    latents = torch.randn(2, 4, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        assert (pipe.decode_latents(latents, chunk) - pipe.decode_latents(latents)).abs().max() < 1e-5


def test_an_exception_of_the_callback_stops_the_work_at_that_step(pipe, picture, unet_calls):
    def stop(_pipe, step, _timestep, _tensors):
        if step == 1:
            raise Cancelled("nobody waits")
        return {}

    with pytest.raises(Cancelled, match="nobody waits"):
        pipe(picture(), PROMPT, num_frames=2, num_inference_steps=5, callback_on_step_end=stop)
    assert len(unet_calls) == 2
    # The next call is none the worse for it.
    pipe(picture(), PROMPT, num_frames=2, num_inference_steps=2, output_type="latent")
    assert len(unet_calls) == 4


def test_the_callback_sees_each_step_and_may_change_the_latents(pipe, picture):
    seen = []

    def zero(_pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    frames = pipe(
        picture(), PROMPT, num_frames=2, num_inference_steps=3, output_type="latent", callback_on_step_end=zero
    ).frames
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist()))
    assert not frames.any()


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("height", {"height": 34}),
        ("width", {"width": 4}),
        ("height", {"height": -32}),
        ("num_frames", {"num_frames": 0}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("fps", {"fps": 0}),
        ("guidance_scale", {"guidance_scale": float("nan")}),
        ("guidance_scale", {"guidance_scale": -1.0}),
        ("image_guidance_scale", {"image_guidance_scale": float("inf")}),
        ("image_guidance_scale", {"image_guidance_scale": 1e9}),
        ("motion_scale", {"motion_scale": 99}),
        ("clip_skip", {"clip_skip": 4}),
        ("clip_skip", {"clip_skip": -1}),
        ("latents", {"latents": torch.zeros(1, 4, 2, 2, 2)}),
        ("prompt", {"prompt": ["one", "two"]}),
        ("prompt", {"prompt": [None]}),
        ("negative_prompt", {"negative_prompt": ["one", "two"]}),
        ("generator", {"generator": [torch.Generator(), torch.Generator()]}),
    ],
)
def test_an_argument_out_of_range_is_named(pipe, picture, unet_calls, field, arguments):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        pipe(picture(), **{"prompt": PROMPT, "num_frames": 3, "num_inference_steps": 2, **arguments})
    assert unet_calls == []


def test_a_control_that_a_family_lacks_is_refused_by_name(i2vgen, picture):
    with pytest.raises(ValueError, match=r"^motion_scale: the i2vgen-xl family"):
        i2vgen(picture(), PROMPT, motion_scale=1)


def test_zero_terminal_snr_schedules_give_finite_frames(i2vgen, picture):
    scheduler = type(i2vgen.scheduler).from_config(
        i2vgen.scheduler.config,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )
    i2vgen.register_modules(scheduler=scheduler)
    frames = i2vgen(picture(), PROMPT, num_frames=2, num_inference_steps=4, output_type="np").frames
    assert np.isfinite(frames).all()
