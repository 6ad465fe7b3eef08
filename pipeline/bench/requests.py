"""The request that every rung is measured on: ours, and the same through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..optimise.base import NotApplicable
from .timing import wait

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline


def own_request(pipe: ImageAnimationPipeline, on_step: Callable[[], None] | None = None) -> np.ndarray:
    """One request of fixed picture, prompt and seed; frames `(frames, height, width, 3)` in [0, 1]."""

    def after_step(*_arguments: Any) -> dict[str, Any]:
        if on_step is not None:
            wait(pipe.device)
            on_step()
        return {}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frames = pipe(
            picture(pipe.default_size),
            "a red circle moves right",
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            callback_on_step_end=after_step,
        ).frames[0]
    wait(pipe.device)
    return np.asarray(frames)


def diffusers_request(pipe: ImageAnimationPipeline, on_step: Callable[[], None] | None = None) -> np.ndarray:
    """The same request through diffusers' own class, with the same weights; it knows two branches alone.

    Raises:
        NotApplicable: diffusers has no pipeline for this family, or it fails.
    """
    if pipe.family.name != "i2vgen-xl":
        raise NotApplicable(
            f"diffusers: its pipeline is compared for the i2vgen-xl family, and this is {pipe.family.name}"
        )
    from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import I2VGenXLPipeline

    names = ("vae", "text_encoder", "tokenizer", "image_encoder", "feature_extractor", "unet", "scheduler")
    theirs = I2VGenXLPipeline(**{name: getattr(pipe, name) for name in names})
    theirs.set_progress_bar_config(disable=True)
    height, width = pipe.default_size
    own_step = theirs.scheduler.step

    def step(*arguments: Any, **options: Any) -> Any:  # the pipeline has no callback
        output = own_step(*arguments, **options)
        if on_step is not None:
            wait(pipe.device)
            on_step()
        return output

    theirs.scheduler.step = step
    try:
        output = theirs(
            prompt="a red circle moves right",
            image=picture(pipe.default_size),
            height=height,
            width=width,
            num_frames=pipe.config.num_frames,
            target_fps=pipe.config.fps,
            num_inference_steps=pipe.config.num_inference_steps,
            guidance_scale=max(1.5, pipe.config.guidance_scale),
            clip_skip=None,  # with transformers 5 its default fails (diffusers #14124)
            decode_chunk_size=1,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
    finally:
        del theirs.scheduler.step
    return np.asarray(output.frames[0])


def picture(size: tuple[int, int]) -> Image.Image:
    """A gradient with a disc: every brightness, and an edge."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x * 255 / width, y * 255 / height, np.full((height, width), 90.0)], -1)
    disc = np.hypot(x / width - 0.35, y / height - 0.5) < 0.15
    picture[disc] = (220, 26, 31)
    return Image.fromarray(picture.astype(np.uint8))
