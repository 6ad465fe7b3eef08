"""HunyuanVideo-1.5 (Tencent 2025): image to video, after diffusers 0.42.1.

- The network sees noise, the picture's latents and a mask side by side, and SigLIP's tokens of the picture.
- A prompt is read twice: by Qwen2.5-VL in a chat that asks it to describe the video, and by ByT5, which spells, what of
  it stands in quotation marks and is to be seen as writing.
- Checkpoints that were distilled with mean flows are told where a step ends beside where it begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..prompts import warn_of_cut
from .base import Cond, Defaults, Family, Parts, Request, check_widths, of_padded, pixels_of, without_padding

_SYSTEM_MESSAGE = (" " * 9).join(
    (
        "You are a helpful assistant. Describe the video by detailing the following aspects:",
        "1. The main content and theme of the video.",
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
        "4. background environment, light, style and atmosphere.",
        "5. camera angles, movements, and transitions used in the video.",
    )
)
"""What stands before a prompt, with the spaces that it was published with."""

_SYSTEM_TOKENS = 108
"""Tokens up to the prompt. The network is given those that come after, at most so many:"""
_READ_TOKENS = 1000

_GLYPH_TOKENS = 256

_GUIDER = {"guidance_rescale": 0.0, "use_original_formulation": False, "start": 0.0, "stop": 1.0}
"""What `guider` has to say where guidance is what it is for every family."""


class HunyuanVideo15Family(Family):
    """Checkpoints of `HunyuanVideo15ImageToVideoPipeline`.

    The network is given `text` `(batch, 1000, width)` with `text_mask` `(batch, 1000)`, `glyphs` `(batch, 256, width)`
    with `glyph_mask` `(batch, 256)`, `picture`: latents and mask `(batch, 33, frames, h, w)`, `image_embeds`
    `(batch, 729, width)`, and, where it was distilled with mean flows, `grid` `(batch, steps)`: the timesteps.
    """

    name = "hunyuanvideo-1.5"
    pipeline_class = "HunyuanVideo15ImageToVideoPipeline"
    components = {
        "text_encoder": ("Qwen2_5_VLTextModel",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend"),
        "transformer": ("HunyuanVideo15Transformer3DModel",),
        "vae": ("AutoencoderKLHunyuanVideo15",),
        "scheduler": (),
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer_2": ("ByT5Tokenizer",),
        "guider": ("ClassifierFreeGuidance",),
        "image_encoder": ("SiglipVisionModel",),
        "feature_extractor": ("SiglipImageProcessor", "SiglipImageProcessorPil"),
    }
    offload_order = "image_encoder->text_encoder->text_encoder_2->transformer->vae"
    text_tokens = _READ_TOKENS - 5  # the chat's turn ends in five
    defaults = Defaults(frames=121, height=480, width=848, steps=50, guidance_scale=6.0, fps=24)
    small = Defaults(frames=9, height=64, width=64, steps=8, guidance_scale=6.0, fps=24)
    flow = True
    licence = (
        "Tencent Hunyuan Community License: does not hold in the European Union, the United Kingdom and South Korea; "
        "what the model makes may not improve other models, which training a student on its clips does; services of "
        "more than 100 million users a month need a licence of their own"
    )

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        config, latents = components["transformer"].config, components["vae"].config.latent_channels
        check_widths(
            components,
            {
                "text_encoder": config.text_embed_dim,
                "text_encoder_2": config.text_embed_2_dim,
                "image_encoder": config.image_embed_dim,
            },
        )
        channels = config.in_channels
        if channels != 2 * latents + 1:
            raise ValueError(f"transformer: takes {channels} channels where image to video has {2 * latents + 1}")
        for name, plain in _GUIDER.items():
            if (given := components["guider"].config.get(name, plain)) != plain:
                raise ValueError(f"guider: {name} {given} is not {plain}, the one that this pipeline knows")

    def defaults_of(self, parts: Parts) -> Defaults:
        found, guider, step = super().defaults_of(parts), parts.guider, self.size_step(parts)
        scale = guider.config.guidance_scale if guider.config.get("enabled", True) else 1.0
        if found is self.small:
            return replace(found, guidance_scale=scale)
        # A clip has the pixels of a square of this side; the published shape is 16 : 9.
        side = parts.transformer.config.target_size
        height = round(side * 3 / 4 / step) * step
        return replace(found, guidance_scale=scale, height=height, width=side**2 // height // step * step)

    def compression(self, parts: Parts) -> tuple[int, int]:
        return parts.vae.temporal_compression_ratio, parts.vae.spatial_compression_ratio

    def size_step(self, parts: Parts) -> int:
        return super().size_step(parts) * int(parts.transformer.config.patch_size)

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        warn_of_cut(parts.tokenizer, parts.text_encoder, texts, self.text_tokens)
        chats = [
            [{"role": "system", "content": _SYSTEM_MESSAGE}, {"role": "user", "content": text or " "}] for text in texts
        ]
        tokens = parts.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            padding="max_length",
            max_length=_READ_TOKENS + _SYSTEM_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(parts.device)
        hidden = parts.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-3]
        glyphs, glyph_mask = self._glyphs(parts, texts)
        text = without_padding(hidden[:, _SYSTEM_TOKENS:], tokens.attention_mask[:, _SYSTEM_TOKENS:])
        return {**text, "glyphs": glyphs, "glyph_mask": glyph_mask}

    def _glyphs(self, parts: Parts, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return what ByT5 makes of words in quotation marks, `(batch, tokens, width)`, zeros without any, and their
        mask.
        """
        encoder, shown = parts.text_encoder_2, [written_words(text) for text in texts]
        glyphs = torch.zeros(
            len(texts), _GLYPH_TOKENS, encoder.config.d_model, dtype=encoder.dtype, device=parts.device
        )
        mask = torch.zeros(len(texts), _GLYPH_TOKENS, dtype=torch.bool, device=parts.device)
        for k, words in enumerate(shown):
            if words:
                tokens = parts.tokenizer_2(
                    words, padding="max_length", max_length=_GLYPH_TOKENS, truncation=True, return_tensors="pt"
                ).to(parts.device)
                glyphs[k] = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.float())[0][0]
                mask[k] = tokens.attention_mask[0].bool()
        return glyphs, mask

    def text_of(self, embeds: Tensor) -> Cond:
        return of_padded(embeds)

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        images = request.cropped()
        first = self.encode_clip(parts, pixels_of(images)[:, :, None])  # (batch, channels, 1, h, w)
        given = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
        _, frames, height, width = self.latent_shape(parts, request.frames, request.height, request.width)
        others = given.new_zeros(len(images), given.shape[1], frames - 1, height, width)
        cond = {"picture": torch.cat([given, others], dim=2), "image_embeds": self._image_tokens(parts, images)}
        return {name: tensor.to(parts.dtype) for name, tensor in cond.items()}

    def _image_tokens(self, parts: Parts, images: Sequence[Image]) -> Tensor:
        """Return SigLIP's tokens of pictures, `(batch, tokens, width)`."""
        encoder = parts.image_encoder
        pixels = parts.feature_extractor(images=list(images), return_tensors="pt").pixel_values
        return cast(Tensor, encoder(pixels.to(parts.device, encoder.dtype)).last_hidden_state)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, ...], device: torch.device) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1], device=device)

    def with_grid(self, parts: Parts, cond: Cond, timesteps: Tensor) -> Cond:
        if not parts.transformer.config.use_meanflow:
            return cond
        return {**cond, "grid": timesteps.float().expand(len(cond["picture"]), -1)}

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        batch, model, t = z.shape[0], cast(Any, network), t.expand(z.shape[0])
        glyphs, glyph_mask = cond.get("glyphs"), cond.get("glyph_mask")
        if glyphs is None or glyph_mask is None:  # a caller that brings hidden states brings none of ByT5
            glyphs = z.new_zeros(batch, _GLYPH_TOKENS, model.config.text_embed_2_dim)
            glyph_mask = torch.zeros(batch, _GLYPH_TOKENS, dtype=torch.bool, device=z.device)
        end = None
        if (grid := cond.get("grid")) is not None:
            # A step ends at the next timestep, the last one at 0.
            end = torch.where(grid < t[:, None], grid, 0).amax(dim=1).to(z.dtype)
        output = model(
            hidden_states=torch.cat([z, cond["picture"]], dim=1),
            timestep=t.to(z.dtype),
            timestep_r=end,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["text_mask"],
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=cond["image_embeds"],
            return_dict=False,
        )
        return cast(Tensor, output[0])

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        vae = parts.vae
        # One clip at a time, as in `decode`.
        latents = [vae.encode(one.to(parts.device, vae.dtype)).latent_dist.mode() for one in clips.split(1)]
        return torch.cat(latents) * float(vae.config.scaling_factor)

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae = parts.vae
        z = z.to(vae.dtype) / vae.config.scaling_factor
        # One clip at a time: the mask of its attention (diffusers 0.42.1) does not fit more.
        return torch.cat([vae.decode(one, return_dict=False)[0] for one in z.split(1)]).float()


def written_words(prompt: str) -> str | None:
    """Return what of a prompt stands in quotation marks, as ByT5 was trained to read it; None without any."""
    found = [straight or curly for straight, curly in re.findall(r'"(.*?)"|“(.*?)”', prompt)]
    return "".join(f'Text "{words}". ' for words in dict.fromkeys(found)) or None
