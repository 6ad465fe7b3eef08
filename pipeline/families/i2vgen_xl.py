"""I2VGen-XL (Zhang et al. 2023): picture as latents of the first frame, as context and as an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from diffusers import I2VGenXLUNet
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from ..images import centre_crop, to_tensor
from .base import Conditioning, ImageConditioning

if TYPE_CHECKING:
    from ..animation import ImageAnimationPipeline


def _published_crop(image: Image, width: int, height: int) -> Image:
    """`centre_crop` as the published pipeline rounds it.

    For many sizes of picture (two in five at 1280x704) its floor division comes out a pixel short, and
    the edge is black. Checkpoints as published keep that, so that a seed gives the clip that it gives
    elsewhere.
    """
    scale = min(image.width / width, image.height / height)
    scaled = round(image.width // scale), round(image.height // scale)
    if scaled[0] * scaled[1] > 16 * width * height:  # a ribbon: the whole of it would not fit into memory
        return centre_crop(image, width, height)
    image = image.resize(scaled, resample=Resampling.BOX)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class I2VGenXLFamily:
    """Checkpoints of `I2VGenXLUNet`."""

    name = "i2vgen-xl"
    clip_skip: int | None = 1
    default_size: tuple[int, int] | None = (704, 1280)
    noise_before_image = False
    guidance_scale = 9.0
    skips_layers_of_negative = True
    steps_by_frame = True

    def accepts(self, unet: nn.Module) -> bool:
        return isinstance(unet, I2VGenXLUNet)

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
        if motion_scale:
            raise ValueError("motion_scale: the i2vgen-xl family has no such control; leave it at 0")
        crop = _published_crop if pipe.config.image_latents_fill == "position" else centre_crop
        pixels = torch.cat([to_tensor(crop(image, width, height)) for image in images])
        # The published pipeline draws this sample from torch's global generator, whatever `generator` is; a
        # seed gives the same clip only if that is kept. With a generator for each clip, each picture's sample is
        # what the global one would draw from that clip's seed: a clip does not depend on those beside it.
        own = None
        if isinstance(generator, list):
            own = [torch.Generator(one.device).manual_seed(one.initial_seed()) for one in generator]
        latents = pipe.encode_pixels(pixels, generator=own)[:, :, None]
        if pipe.config.image_latents_fill == "repeat":
            latents = latents.expand(-1, -1, frames, -1, -1)
        else:
            rest = torch.arange(1, frames, device=latents.device) / max(1, frames - 1)  # (frames - 1,)
            position = rest.to(latents.dtype)[None, None, :, None, None].expand(
                latents.shape[0], latents.shape[1], -1, *latents.shape[-2:]
            )
            latents = torch.cat([latents, position], dim=2)  # (batch, 4, frames, height, width)
        # From fp16 files transformers keeps the encoder in half precision, where diffusers widens the U-Net.
        return ImageConditioning(latents, embedding=self._embed(pipe, images, width).to(latents.dtype))

    def _embed(self, pipe: ImageAnimationPipeline, images: Sequence[Image], width: int) -> Tensor:
        """Embedding of the picture's central square, `(batch, 1, width)`."""
        processor, encoder = pipe.feature_extractor, pipe.image_encoder
        if encoder is None or processor is None:
            raise ValueError("image_encoder: an i2vgen-xl checkpoint needs an image encoder and a feature extractor")
        size = processor.crop_size["width"], processor.crop_size["height"]
        crop = _published_crop if pipe.config.image_latents_fill == "position" else centre_crop
        squares = [crop(image, width, width).resize(size, Resampling.BILINEAR) for image in images]
        pixels = torch.cat([to_tensor(square) for square in squares]) / 2 + 0.5
        mean = torch.tensor(processor.image_mean)[:, None, None]
        std = torch.tensor(processor.image_std)[:, None, None]
        parameter = next(encoder.parameters())
        pixels = ((pixels - mean) / std).to(device=parameter.device, dtype=parameter.dtype)
        return cast(Tensor, encoder(pixels).image_embeds).unsqueeze(1)

    def two_branch_negative(self, image: ImageConditioning) -> ImageConditioning:
        assert image.embedding is not None
        return ImageConditioning(image.latents, embedding=torch.zeros_like(image.embedding))

    def predict(self, unet: nn.Module, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        output = unet(
            latents,
            timestep,
            encoder_hidden_states=conditioning.text,
            fps=conditioning.fps,
            image_latents=conditioning.image.latents,
            image_embeddings=conditioning.image.embedding,
            timestep_cond=conditioning.guidance,
            return_dict=False,
        )
        return cast(Tensor, output[0])
