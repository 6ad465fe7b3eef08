"""PIA (Zhang et al. 2023): mask and picture latents as further input channels of a motion U-Net.

A picture of another shape than the clip is cropped to it. diffusers' own pipeline encodes the whole picture and
stretches its latents, which deforms what is in it; the frames are the same where the picture has the clip's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from .base import Cond, Control, Defaults, Parts, Request, pixels_of
from .unet import LatentUNet

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


class PIAFamily(LatentUNet):
    """Checkpoints of `UNetMotionModel` that take 4 channels of noise, 1 of mask and 4 of the picture.

    The network is given `text`, `image_latents` `(batch, 4, frames, height, width)`, `image_mask`
    `(batch, 1, frames, height, width)`: how like the picture each frame is to be, and, where it is told the guidance
    scale, `guidance` `(batch, width)`.
    """

    name = "pia"
    pipeline_class = "PIAPipeline"
    components = {
        **LatentUNet.components,
        "unet": ("UNetMotionModel", "UNet2DConditionModel"),
        "motion_adapter": ("MotionAdapter",),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil"),
    }
    optional = ("motion_adapter", "image_encoder", "feature_extractor")
    noise_before_image = True
    defaults = Defaults(frames=16, height=512, width=512, steps=50, guidance_scale=7.5, fps=16)
    skips_layers_of_negative = False
    controls = {
        "motion_scale": Control(
            0,
            len(_LIKENESS) - 1,
            0,
            whole=True,
            about="amount and kind of motion: 0 to 2 more, 3 to 5 loop, 6 to 8 style",
        )
    }

    def assemble(self, components: dict[str, Any]) -> dict[str, Any]:
        unet = components["unet"]
        if isinstance(unet, UNet2DConditionModel):
            components["unet"] = UNetMotionModel.from_unet2d(unet, components["motion_adapter"])
        return components

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        super().check(components, options)
        if (channels := components["unet"].config["in_channels"]) != 9:
            raise ValueError(
                f"unet: UNetMotionModel with {channels} input channels belongs to no family; PIA's have 9, of noise, "
                "mask and picture"
            )

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        frames = request.frames
        latents = self.encode_pixels(parts, pixels_of(request.cropped()), request.generator)[:, :, None]
        latents = latents.expand(-1, -1, frames, -1, -1)
        row = _LIKENESS[int(request.controls["motion_scale"])]
        likeness = torch.tensor([row[min(k, len(row) - 1)] for k in range(frames)])
        mask = likeness.to(latents)[None, None, :, None, None].expand(latents.shape[0], 1, -1, *latents.shape[-2:])
        return {"image_latents": latents, "image_mask": mask}

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        frames = z.shape[2]
        sample = torch.cat([z, cond["image_mask"], cond["image_latents"]], dim=1)  # (batch, 9, frames, height, width)
        context = cond["text"].repeat_interleave(frames, dim=0)  # (batch * frames, tokens, width)
        output = network(
            sample, t, encoder_hidden_states=context, timestep_cond=cond.get("guidance"), return_dict=False
        )
        return cast(Tensor, output[0])
