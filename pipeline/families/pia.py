"""PIA (Zhang et al. 2023): mask and picture latents as further input channels of a motion U-Net.

A picture of another shape than the clip is cropped to it. diffusers' own pipeline encodes the whole picture and
stretches its latents, which deforms what is in it; the frames are the same where the picture has the clip's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from diffusers import UNetMotionModel
from PIL.Image import Image
from torch import Tensor, nn

from ..images import centre_crop, to_tensor
from .base import Conditioning, ImageConditioning

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline

# How like the picture frame k is to be, by motion scale: three amounts of motion, three of looping
# motion, three of a change of style. Figures of the published model (PIA, section 3.2 and its
# code); a row's last value holds for all later frames.
_LIKENESS: tuple[tuple[float, ...], ...] = (
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9, 1.0),
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75, 0.75, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8, 0.8, 1.0),
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 1.0),
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    (0.5, 0.2),
)


class PIAFamily:
    """Checkpoints of `UNetMotionModel` that take 4 channels of noise, 1 of mask and 4 of the picture."""

    name = "pia"
    clip_skip: int | None = None
    default_size: tuple[int, int] | None = None
    noise_before_image = True
    guidance_scale = 7.5
    skips_layers_of_negative = False
    steps_by_frame = False

    def accepts(self, unet: nn.Module) -> bool:
        return isinstance(unet, UNetMotionModel) and unet.config["in_channels"] == 9

    def condition_image(
        self,
        pipe: ImageAnimationPipeline,
        images: Sequence[Image],
        frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        motion_scale: int,
    ) -> ImageConditioning:
        if not 0 <= motion_scale < len(_LIKENESS):
            raise ValueError(f"motion_scale: {motion_scale} is outside 0 to {len(_LIKENESS) - 1}")
        pixels = torch.cat([to_tensor(centre_crop(image, width, height)) for image in images])
        latents = pipe.encode_pixels(pixels, generator=generator)[:, :, None].expand(-1, -1, frames, -1, -1)
        row = _LIKENESS[motion_scale]
        likeness = torch.tensor([row[min(k, len(row) - 1)] for k in range(frames)])
        mask = likeness.to(latents)[None, None, :, None, None].expand(latents.shape[0], 1, -1, *latents.shape[-2:])
        return ImageConditioning(latents, mask=mask)

    def two_branch_negative(self, image: ImageConditioning) -> ImageConditioning:
        return image

    def predict(self, unet: nn.Module, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.image.mask is not None
        frames = latents.shape[2]
        sample = torch.cat([latents, conditioning.image.mask, conditioning.image.latents], dim=1)  # (batch, 9, ...)
        context = conditioning.text.repeat_interleave(frames, dim=0)  # (batch * frames, tokens, width)
        output = unet(
            sample, timestep, encoder_hidden_states=context, timestep_cond=conditioning.guidance, return_dict=False
        )
        return cast(Tensor, output[0])
