"""LTX-Video 0.9 (HaCohen et al. 2024), after diffusers 0.42.1: tokens of a strongly compressed clip whose first latent
frame is the picture's, held at timestep 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..prompts import tokenize
from .base import (
    Cond,
    Control,
    Defaults,
    Family,
    Parts,
    Request,
    check_widths,
    of_padded,
    sampled_latents,
    without_padding,
)


class LTXFamily(Family):
    """Checkpoints of `LTXImageToVideoPipeline`; the same weights come as `LTXPipeline` and `LTXConditionPipeline`.

    The network is given `text` `(batch, 128, width)` with `text_mask` `(batch, 128)`, `picture`: the first latent frame
    `(batch, 128, 1, h, w)`, and `rope_scale` `(batch, 3)`: seconds that a latent frame lasts, pixels that a latent
    covers.
    """

    name = "ltx"
    pipeline_class = "LTXImageToVideoPipeline"
    components = {
        "scheduler": (),
        "vae": ("AutoencoderKLLTXVideo",),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
        "transformer": ("LTXVideoTransformer3DModel",),
    }
    offload_order = "text_encoder->transformer->vae"
    text_tokens = 128
    defaults = Defaults(frames=161, height=512, width=704, steps=50, guidance_scale=3.0, fps=25)
    small = Defaults(frames=9, height=64, width=64, steps=8, guidance_scale=3.0, fps=25)
    controls = {
        "decode_timestep": Control(0, 1, 0.0, about="noise level that the decoder believes in, where it is told one"),
        "decode_noise_scale": Control(
            0, 1, None, about="noise mixed in before decoding; decode_timestep where left out"
        ),
    }
    stacks_branches = True
    drops_picture = False
    turns = True
    flow = True
    licence = "LTX Video licences differ by release: read the one beside the weights before serving or distilling"

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        config, latents = components["transformer"].config, components["vae"].config.latent_channels
        check_widths(components, {"text_encoder": config.caption_channels})
        if config.in_channels != latents * config.patch_size**2 * config.patch_size_t:
            raise ValueError(
                f"vae: its latents have {latents} channels, and the transformer takes {config.in_channels}; they are "
                "of two checkpoints"
            )

    def compression(self, parts: Parts) -> tuple[int, int]:
        return parts.vae.temporal_compression_ratio, parts.vae.spatial_compression_ratio

    def controls_of(self, parts: Parts) -> Mapping[str, Control]:
        return self.controls if parts.vae.config.timestep_conditioning else {}

    def size_step(self, parts: Parts) -> int:
        # diffusers' own class refuses what is no multiple of 32, also where the network would take it.
        return math.lcm(32, super().size_step(parts) * parts.transformer.config.patch_size)

    def latent_shape(self, parts: Parts, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return parts.transformer.config.in_channels, *super().latent_shape(parts, frames, height, width)[1:]

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        encoder = parts.text_encoder
        tokens = tokenize(parts.tokenizer, encoder, texts, limit=self.text_tokens).to(parts.device)
        # As published: the text encoder attends to the padding, and the transformer does not.
        return without_padding(encoder(tokens.input_ids)[0], tokens.attention_mask)

    def text_of(self, embeds: Tensor) -> Cond:
        return of_padded(embeds)

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        temporal, spatial = self.compression(parts)
        scale = torch.tensor([temporal / request.fps, spatial, spatial], device=parts.device)
        return {
            "picture": self._normalised(parts.vae, sampled_latents(parts, request).float()),
            "rope_scale": scale.expand(len(request.images), -1),
        }

    def _normalised(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = self._statistics(vae, latents)
        return cast(Tensor, (latents - mean) * vae.config.scaling_factor / std)

    def _statistics(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            one.view(1, -1, 1, 1, 1).to(like.device, like.dtype) for one in (vae.latents_mean, vae.latents_std)
        )
        return mean, std

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, ...], device: torch.device) -> None:
        config, sigmas = scheduler.config, np.linspace(1.0, 1 / steps, steps)
        if steps == 1 and config.get("shift_terminal"):
            raise ValueError(
                "num_inference_steps: 1 is below 2; this scheduler's first and last noise level (shift_terminal) differ"
            )
        if not config.get("use_dynamic_shifting"):
            scheduler.set_timesteps(sigmas=sigmas, device=device)
            return
        # The more tokens, the more of the steps go where there is noise: mu is linear in their number.
        tokens, least, most = shape[2] * shape[3] * shape[4], config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (most - least)
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=config.base_shift + slope * (tokens - least))

    def initial(self, scheduler: Any, noise: Tensor, cond: Cond) -> Tensor:
        return self.hold(noise, cond)

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        batch, _, frames, height, width = z.shape
        model = cast(Any, network)
        patch, patch_t = model.config.patch_size, model.config.patch_size_t
        tokens = _pack(z, patch, patch_t)  # (batch, tokens, channels)
        held = (torch.arange(frames // patch_t, device=z.device) == 0).float()
        held = held.repeat_interleave((height // patch) * (width // patch))  # (tokens,)
        output = model(
            hidden_states=tokens,
            encoder_hidden_states=cond["text"],
            timestep=t.expand(batch)[:, None] * (1 - held),
            encoder_attention_mask=cond["text_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=tuple(cond["rope_scale"][0]),
            return_dict=False,
        )
        return _unpack(output[0], (frames, height, width), patch, patch_t)

    def hold(self, z: Tensor, cond: Cond) -> Tensor:
        picture = cond["picture"]
        return torch.cat([picture.to(z.dtype), z[:, :, picture.shape[2] :]], dim=2)

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        vae = parts.vae
        return self._normalised(vae, vae.encode(clips.to(parts.device, vae.dtype)).latent_dist.mode().float())

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae, controls = parts.vae, request.controls if request is not None else {}
        mean, std = self._statistics(vae, z)
        z = (z * std / vae.config.scaling_factor + mean).to(parts.dtype)
        level = None
        if vae.config.timestep_conditioning:
            at = controls.get("decode_timestep", 0.0)
            scale = controls.get("decode_noise_scale", at)
            generator = request.generator if request is not None else None
            noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
            z = (1 - scale) * z + scale * noise
            level = torch.full((len(z),), at, device=z.device, dtype=z.dtype)
        return cast(Tensor, vae.decode(z.to(vae.dtype), level, return_dict=False)[0]).float()


def _pack(z: Tensor, patch: int, patch_t: int) -> Tensor:
    """Return latents `(batch, channels, frames, h, w)` as tokens, `(batch, tokens, channels of a patch)`."""
    z = z.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, patch_t))
    return z.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3)


def _unpack(tokens: Tensor, shape: tuple[int, int, int], patch: int, patch_t: int) -> Tensor:
    """Return tokens as latents of `shape`, frames, height and width; the inverse of `_pack`."""
    frames, height, width = shape
    tokens = tokens.unflatten(2, (-1, patch_t, patch, patch))
    tokens = tokens.unflatten(1, (frames // patch_t, height // patch, width // patch))
    return tokens.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
