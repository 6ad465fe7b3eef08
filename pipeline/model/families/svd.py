"""Stable Video Diffusion (Blattmann et al. 2023), after diffusers 0.42.1: the picture alone, without a prompt.

Guidance is classic, towards the picture, with a scale that rises from the first frame to the last.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from .base import Cond, Control, Defaults, Family, Parts, Request, halvings, pixels_of
from .unet import encode_frames

_CLIP_SIDE = 224
"""Of the picture that the image encoder sees, in pixels."""


class SVDFamily(Family):
    """Checkpoints of `StableVideoDiffusionPipeline`.

    The network is given `image_latents` `(batch, 4, 1, height, width)`, the same for each frame, `image_embeds`
    `(batch, 1, width)` and `time_ids` `(batch, 3)`: frame rate, motion bucket and noise of the picture.
    """

    name = "svd"
    pipeline_class = "StableVideoDiffusionPipeline"
    components = {
        "vae": ("AutoencoderKLTemporalDecoder",),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "unet": ("UNetSpatioTemporalConditionModel",),
        "scheduler": (),
        "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil"),
    }
    networks = ("unet",)
    offload_order = "image_encoder->unet->vae"
    defaults = Defaults(frames=25, height=576, width=1024, steps=25, guidance_scale=3.0, fps=7)
    small = Defaults(frames=8, height=64, width=64, steps=8, guidance_scale=3.0, fps=7)
    controls = {
        "min_guidance_scale": Control(
            1, 100, 1.0, about="guidance of the first frame; guidance_scale is the last one's"
        ),
        "motion_bucket_id": Control(0, 255, 127, whole=True, about="amount of motion"),
        "noise_aug_strength": Control(
            0, 10, 0.02, about="noise added to the picture: more is less like it, and moves more"
        ),
    }
    noise_by_frame = True
    takes_prompt = False
    stacks_branches = True
    licence = "Stability AI Community License: free below $1 million of yearly revenue"

    def defaults_of(self, parts: Parts) -> Defaults:
        return replace(super().defaults_of(parts), frames=parts.unet.config.num_frames)

    def compression(self, parts: Parts) -> tuple[int, int]:
        return 1, halvings(parts.vae)

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        pixels = pixels_of(request.cropped()).to(parts.device)
        embeds = self._embed(parts, pixels).to(parts.dtype)
        strength = request.controls["noise_aug_strength"]
        noise = randn_tensor(pixels.shape, generator=request.generator, device=parts.device, dtype=pixels.dtype)
        vae = parts.vae
        latents = vae.encode((pixels + strength * noise).to(vae.dtype)).latent_dist.mode()[:, :, None].to(parts.dtype)
        # The checkpoints were trained with a frame rate that is one less.
        ids = torch.tensor([request.fps - 1, request.controls["motion_bucket_id"], strength], dtype=parts.dtype)
        return {
            "image_latents": latents,
            "image_embeds": embeds,
            "time_ids": ids.to(parts.device).expand(len(pixels), -1),
        }

    def _embed(self, parts: Parts, pixels: Tensor) -> Tensor:
        encoder, processor = parts.image_encoder, parts.feature_extractor
        small = (_resize_with_antialiasing(pixels, (_CLIP_SIDE, _CLIP_SIDE)) + 1) / 2
        mean, std = (
            torch.tensor(one, device=small.device)[:, None, None] for one in (processor.image_mean, processor.image_std)
        )
        return cast(Tensor, encoder(((small - mean) / std).to(encoder.dtype)).image_embeds)[:, None]

    def negative_picture(self, picture: Cond) -> Cond:
        return self.drop_picture(picture)

    def guide(self, scale: float, network: str, request: Request) -> float | Tensor:
        if scale <= 1:
            return scale
        least = request.controls["min_guidance_scale"]
        return torch.linspace(least, scale, request.frames)[None, None, :, None, None]

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        picture = cond["image_latents"].expand(-1, -1, z.shape[2], -1, -1)
        given = torch.cat([z, picture], dim=1).transpose(1, 2)  # (batch, frames, 8, height, width)
        output = cast(Any, network)(given, t, cond["image_embeds"], cond["time_ids"], return_dict=False)
        return cast(Tensor, output[0]).transpose(1, 2)

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        return encode_frames(parts.vae, clips)

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae, (batch, _, frames, _, _) = parts.vae, z.shape
        flat = (z / vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)  # (batch * frames, 4, h, w)
        # The decoder blends neighbouring frames: it is given as many at once as it was trained with.
        pieces = [vae.decode(p.to(vae.dtype), num_frames=len(p)).sample for p in flat.split(chunk or frames)]
        video: Tensor = torch.cat(pieces).unflatten(0, (batch, frames)).transpose(1, 2)
        return video.float()
