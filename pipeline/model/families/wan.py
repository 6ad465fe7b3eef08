"""Wan (Wan Team 2025): image to video of versions 2.1, 2.2 A14B (two experts) and 2.2 TI2V-5B, after diffusers 0.42.1.

- 2.1 and A14B see noise, a mask and the picture's latents side by side; 2.1 also CLIP tokens of the picture, and its
  first-and-last-frame checkpoints a picture to end with.
- A14B has an expert for high noise levels and one for low ones; `boundary_ratio` says where they change.
- TI2V-5B is given the first latent frame, which it sees at timestep 0 and every other frame at t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..prompts import clean, tokenize
from .base import Cond, Control, Defaults, Family, Parts, Request, check_widths, pixels_of


class WanFamily(Family):
    """Checkpoints of `WanImageToVideoPipeline`.

    The network is given `text` `(batch, 512, width)`, `picture`: mask and latents `(batch, 20, frames, h, w)`, or of
    TI2V-5B the first latent frame `(batch, 48, 1, h, w)`, and of Wan 2.1 `image_embeds` `(batch, 257, width)`.
    """

    name = "wan"
    pipeline_class = "WanImageToVideoPipeline"
    components = {
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend"),
        "text_encoder": ("UMT5EncoderModel",),
        "vae": ("AutoencoderKLWan",),
        "scheduler": (),
        "transformer": ("WanTransformer3DModel",),
        "transformer_2": ("WanTransformer3DModel",),
        "image_encoder": ("CLIPVisionModel",),
        "image_processor": ("CLIPImageProcessor", "CLIPImageProcessorPil"),
    }
    optional = ("transformer_2", "image_encoder", "image_processor")
    options = {"boundary_ratio": None, "expand_timesteps": False}
    networks = ("transformer", "transformer_2")
    offload_order = "text_encoder->image_encoder->transformer->transformer_2->vae"
    text_tokens = 512  # the network takes the last 512 tokens of its context for text, whatever the tokenizer says
    defaults = Defaults(frames=81, height=480, width=832, steps=40, guidance_scale=5.0, fps=16)
    small = Defaults(frames=9, height=64, width=64, steps=8, guidance_scale=5.0, fps=16)
    negative_prompt = (
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
        "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
        "三条腿，背景人很多，倒着走"
    )
    """As published (`wan/configs/shared_config.py`): garish, overexposed, static, blurred details and so on."""
    controls = {
        "guidance_scale_2": Control(
            1, 100, None, about="guidance_scale of the expert for low noise levels, where there are two"
        )
    }
    turns = True
    flow = True
    float32_parts = ("vae", "image_encoder")

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        transformer, experts = components["transformer"], components["transformer_2"] is not None
        if (options["boundary_ratio"] is not None) != experts:
            missing = "transformer_2: missing" if not experts else "boundary_ratio: missing in model_index.json"
            raise ValueError(f"{missing}; a Wan checkpoint of two experts has both")
        ratio = options["boundary_ratio"]
        if ratio is not None and not (isinstance(ratio, int | float) and 0 <= ratio <= 1):
            raise ValueError(f"boundary_ratio: {ratio} is not within 0 to 1; it is a share of the noise levels")
        if transformer.config.image_dim is not None:
            for name in ("image_encoder", "image_processor"):
                if components[name] is None:
                    raise ValueError(
                        f"{name}: missing; the transformer of this Wan checkpoint attends to CLIP's tokens"
                    )
        check_widths(components, {"text_encoder": transformer.config.text_dim})
        if transformer.config.image_dim is not None:
            check_widths(components, {"image_encoder": transformer.config.image_dim})
        channels, latents = transformer.config.in_channels, components["vae"].config.z_dim
        wanted = (
            latents if options["expand_timesteps"] else latents * 2 + components["vae"].config.scale_factor_temporal
        )
        if channels != wanted:
            raise ValueError(
                f"transformer: takes {channels} channels where image to video has {wanted}; a checkpoint for text "
                "alone makes clips without a picture"
            )

    def defaults_of(self, parts: Parts) -> Defaults:
        found = super().defaults_of(parts)
        if parts.transformer_2 is not None:
            return replace(found, guidance_scale=3.5)
        if parts.options["expand_timesteps"] and found is not self.small:
            return replace(found, frames=121, height=704, width=1280, steps=50, fps=24)
        return found

    def last_image(self, parts: Parts) -> Literal["never", "sometimes", "always"]:
        config = parts.transformer.config
        if config.pos_embed_seq_len is not None:
            return "always"
        # CLIP's tokens of two pictures need positions, and the 5B checkpoint holds its first frame alone.
        return "never" if config.image_dim is not None or parts.options["expand_timesteps"] else "sometimes"

    def compression(self, parts: Parts) -> tuple[int, int]:
        return parts.vae.config.scale_factor_temporal, parts.vae.config.scale_factor_spatial

    def controls_of(self, parts: Parts) -> Mapping[str, Control]:
        return self.controls if parts.transformer_2 is not None else {}

    def size_step(self, parts: Parts) -> int:
        # diffusers' own class refuses what is no multiple of 16, also where the network would take it.
        return math.lcm(16, super().size_step(parts) * parts.transformer.config.patch_size[1])

    def latent_shape(self, parts: Parts, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        temporal, spatial = self.compression(parts)
        return parts.vae.config.z_dim, (frames - 1) // temporal + 1, height // spatial, width // spatial

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        encoder, cleaned = parts.text_encoder, [clean(text) for text in texts]
        tokens = tokenize(parts.tokenizer, encoder, cleaned, limit=self.text_tokens).to(parts.device)
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return {"text": hidden * tokens.attention_mask[..., None].to(hidden.dtype)}  # zeros after the prompt's end

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        images, last = request.cropped(), request.cropped_last()
        first = pixels_of(images)[:, :, None]  # (batch, 3, 1, height, width)
        if parts.options["expand_timesteps"]:
            return {"picture": self._latents(parts, first)}
        ends = pixels_of(last)[:, :, None] if last else first[:, :, :0]
        between = first.new_zeros(len(first), 3, request.frames - 1 - ends.shape[2], *first.shape[3:])
        latents = self._latents(parts, torch.cat([first, between, ends], dim=2))
        # A channel for each frame that a latent frame stands for, 1 where it is given; the first frame fills its own.
        step = self.frame_step(parts)
        given = torch.zeros(request.frames, device=latents.device)
        given[0] = 1
        if last:
            given[-1] = 1
        given = torch.cat([given[:1].expand(step), given[1:]]).view(-1, step).T  # (step, latent frames)
        mask = given[None, :, :, None, None].expand(len(images), -1, -1, *latents.shape[-2:])
        cond = {"picture": torch.cat([mask.to(latents), latents], dim=1)}
        if parts.transformer.config.image_dim is not None:
            cond["image_embeds"] = self._clip_tokens(parts, images, last)
        return {name: tensor.to(parts.dtype) for name, tensor in cond.items()}

    def _latents(self, parts: Parts, pixels: Tensor) -> Tensor:
        """Return scaled latents of frames, `(batch, channels, latent frames, h, w)`, float32."""
        vae = parts.vae
        latents: Tensor = vae.encode(pixels.to(device=parts.device, dtype=vae.dtype)).latent_dist.mode().float()
        mean, std = (self._statistic(parts, name, latents) for name in ("latents_mean", "latents_std"))
        return (latents - mean) * (1 / std)

    def _statistic(self, parts: Parts, name: str, like: Tensor) -> Tensor:
        return torch.tensor(parts.vae.config[name]).view(1, -1, 1, 1, 1).to(like.device, like.dtype)

    def _clip_tokens(self, parts: Parts, images: Sequence[Image], last: Sequence[Image]) -> Tensor:
        """Return CLIP's tokens of the first picture, then of the last where there is one, `(batch, tokens, width)`."""
        encoder = parts.image_encoder
        tokens = []
        for pictures in filter(None, (images, last)):
            pixels = parts.image_processor(images=list(pictures), return_tensors="pt").pixel_values
            output = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=True)
            tokens.append(output.hidden_states[-2])
        return torch.cat(tokens, dim=1)

    def guide(self, scale: float, network: str, request: Request) -> float:
        return request.controls.get("guidance_scale_2", scale) if network == "transformer_2" else scale

    def network_at(self, parts: Parts, t: Tensor) -> str:
        boundary = parts.options["boundary_ratio"]
        low = boundary is not None and t < boundary * parts.scheduler.config.num_train_timesteps
        return "transformer_2" if low else "transformer"

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        picture, model = cond["picture"], cast(Any, network)
        if picture.shape[1] == z.shape[1]:  # the first frame is given
            z = self.hold(z, cond)
            _, high, wide = model.config.patch_size
            seen = (torch.arange(z.shape[2], device=z.device) > 0)[:, None]  # (frames, 1)
            each = seen.expand(-1, z.shape[3] // high * (z.shape[4] // wide)).flatten()  # (tokens,)
            t = t.reshape(-1, 1) * each[None]  # (1 or batch, tokens)
            t = t.expand(z.shape[0], -1)
        else:
            z, t = torch.cat([z, picture], dim=1), t.expand(z.shape[0])
        tokens = cond.get("image_embeds")
        if tokens is not None and model.config.pos_embed_seq_len is not None:
            tokens = tokens.unflatten(1, (2, -1)).flatten(0, 1)  # (2 * batch, tokens, width): first and last picture
        output = model(z, t, cond["text"], tokens, return_dict=False)
        return cast(Tensor, output[0])

    def hold(self, z: Tensor, cond: Cond) -> Tensor:
        picture = cond["picture"]
        if picture.shape[1] != z.shape[1]:
            return z
        return torch.cat([picture.to(z.dtype), z[:, :, picture.shape[2] :]], dim=2)

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        return self._latents(parts, clips)

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae = parts.vae
        z = z.to(vae.dtype)
        mean, std = (self._statistic(parts, name, z) for name in ("latents_mean", "latents_std"))
        return cast(Tensor, vae.decode(z / (1 / std) + mean, return_dict=False)[0]).float()
