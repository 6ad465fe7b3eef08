"""One request whose picture, prompt and random numbers never change: what models are measured and compared on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .families import Cond
from .sampling import Predict

if TYPE_CHECKING:
    from .animation import ImageAnimationPipeline

PROMPT = "a red circle moves right"


def example_picture(height: int, width: int) -> Image.Image:
    """Return a gradient with a disc: every brightness, and an edge."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, np.full((height, width), 90.0)], -1)
    pixels[np.hypot(x / width - 0.35, y / height - 0.5) < 0.15] = (220, 26, 31)
    return Image.fromarray(pixels.astype(np.uint8))


def last_picture(pipe: ImageAnimationPipeline) -> Image.Image | None:
    """Return the picture that a clip ends with, of a checkpoint that makes none without: `example_picture` mirrored."""
    if pipe.family.last_image(pipe.parts) != "always":
        return None
    return ImageOps.mirror(example_picture(*pipe.default_size))


def seeded_request(
    pipe: ImageAnimationPipeline,
    picture: Image.Image | None = None,
    prompt: str = PROMPT,
    seed: int = 0,
    **given: Any,
) -> Any:
    """Return the clip of a request whose random numbers depend on the seed alone.

    Args:
        picture: None takes `example_picture`.
        given: further arguments of the pipeline; without `output_type` the clip is `(frames, height, width, 3)` in
            [0, 1], float32.
    """
    # Published I2VGen-XL checkpoints sample the picture's posterior with torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pipe(
            picture or example_picture(*pipe.default_size),
            prompt if pipe.family.takes_prompt else None,
            generator=torch.Generator().manual_seed(seed),
            **{"output_type": "np", "last_image": last_picture(pipe), **given},
        ).frames[0]


class FirstPass(NamedTuple):
    """What the network is given first: latents `(batch, channels, frames, h, w)`, a scalar timestep, conditions."""

    latents: Tensor
    timestep: Tensor
    cond: Cond


class _Caught(Exception):
    """Carries the first pass out of the denoising loop."""

    def __init__(self, first: FirstPass) -> None:
        super().__init__()
        self.first = first


class _Catcher:
    def start(self, cond: Cond) -> Predict:
        def catch(latents: Tensor, timestep: Tensor) -> Tensor:
            raise _Caught(FirstPass(latents, timestep, cond))

        return catch


def first_pass(pipe: ImageAnimationPipeline, **given: Any) -> FirstPass:
    """Return what a request gives the network at its first step, caught from a real one.

    Guidance branches are side by side along the batch where the family stacks them; else it is the first of them.

    Args:
        given: arguments of the pipeline, where the request is not to be a default one.
    """
    before = pipe.denoiser
    pipe.denoiser = _Catcher()
    try:
        seeded_request(pipe, **given)
    except _Caught as caught:
        return caught.first
    finally:
        pipe.denoiser = before
    raise AssertionError("a request makes at least one step")
