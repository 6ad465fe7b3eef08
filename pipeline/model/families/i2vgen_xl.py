"""I2VGen-XL (Zhang et al. 2023): picture as latents of the first frame, as context and as an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn

from ...media.images import centre_crop
from .base import Cond, Defaults, Parts, Request, pixels_of
from .unet import LatentUNet


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


class I2VGenXLFamily(LatentUNet):
    """Checkpoints of `I2VGenXLUNet`.

    The network is given `text`, `image_latents` `(batch, 4, frames, height, width)`, `image_embeds`
    `(batch, 1, width)`, `fps` `(batch,)` and, where it is told the guidance scale, `guidance` `(batch, width)`.
    """

    name = "i2vgen-xl"
    pipeline_class = "I2VGenXLPipeline"
    components = {
        **LatentUNet.components,
        "unet": ("I2VGenXLUNet", "GuidedI2VGenXLUNet"),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil"),
    }
    optional = ("image_encoder", "feature_extractor")
    clip_skip = 1
    defaults = Defaults(frames=16, height=704, width=1280, steps=50, guidance_scale=9.0, fps=16)
    steps_by_frame = True

    def default_side(self, parts: Parts) -> Any:
        side = parts.unet.config.sample_size
        # Published U-Nets say `sample_size` 32, which is not what they are used with.
        return None if side == 32 and self.size_step(parts) == 8 else side

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        frames, published = request.frames, parts.options["image_latents_fill"] == "position"
        crop = _published_crop if published else centre_crop
        pixels = pixels_of([crop(image, request.width, request.height) for image in request.images])
        # The published pipeline draws this sample from torch's global generator, whatever `generator` is; a
        # seed gives the same clip only if that is kept. With a generator for each clip, each picture's sample is
        # what the global one would draw from that clip's seed: a clip does not depend on those beside it.
        own = None
        if isinstance(request.generator, list):
            own = [torch.Generator(one.device).manual_seed(one.initial_seed()) for one in request.generator]
        latents = self.encode_pixels(parts, pixels, own)[:, :, None]
        if published:
            rest = torch.arange(1, frames, device=latents.device) / max(1, frames - 1)  # (frames - 1,)
            position = rest.to(latents.dtype)[None, None, :, None, None].expand(
                latents.shape[0], latents.shape[1], -1, *latents.shape[-2:]
            )
            latents = torch.cat([latents, position], dim=2)  # (batch, 4, frames, height, width)
        else:
            latents = latents.expand(-1, -1, frames, -1, -1)
        embeds = self._embed(parts, request.images, request.width, crop)
        # From fp16 files transformers keeps the encoder in half precision, where diffusers widens the U-Net.
        fps = torch.full((len(pixels),), request.fps, device=latents.device)
        return {"image_latents": latents, "image_embeds": embeds.to(latents.dtype), "fps": fps}

    def _embed(self, parts: Parts, images: Sequence[Image], width: int, crop: Any) -> Tensor:
        """Return the embedding of each picture's central square, `(batch, 1, width)`."""
        processor, encoder = parts.feature_extractor, parts.image_encoder
        if encoder is None or processor is None:
            raise ValueError("image_encoder: an i2vgen-xl checkpoint needs an image encoder and a feature extractor")
        size = processor.crop_size["width"], processor.crop_size["height"]
        squares = [crop(image, width, width).resize(size, Resampling.BILINEAR) for image in images]
        pixels = pixels_of(squares) / 2 + 0.5
        mean, std = (torch.tensor(one)[:, None, None] for one in (processor.image_mean, processor.image_std))
        parameter = next(encoder.parameters())
        pixels = ((pixels - mean) / std).to(device=parameter.device, dtype=parameter.dtype)
        return cast(Tensor, encoder(pixels).image_embeds).unsqueeze(1)

    def negative_picture(self, picture: Cond) -> Cond:
        return {**picture, "image_embeds": torch.zeros_like(picture["image_embeds"])}

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        output = network(
            z,
            t,
            encoder_hidden_states=cond["text"],
            fps=cond["fps"],
            image_latents=cond["image_latents"],
            image_embeddings=cond["image_embeds"],
            timestep_cond=cond.get("guidance"),
            return_dict=False,
        )
        return cast(Tensor, output[0])
