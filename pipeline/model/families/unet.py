"""What I2VGen-XL and PIA share: CLIP text, an autoencoder of single frames, noise schedules with betas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..prompts import tokenize
from .base import Cond, Defaults, Family, Generators, Parts, Request, halvings

_DECODED_PIXELS = 512 * 512
"""Of frames that are decoded together. The decoder's memory grows with them; more gain nothing."""


def encode_frames(vae: Any, clips: Tensor) -> Tensor:
    """Return scaled latents `(batch, channels, frames, h, w)` of clips, each frame by itself, without random numbers.

    Args:
        clips: `(batch, 3, frames, height, width)` in [-1, 1].
    """
    flat = clips.transpose(1, 2).flatten(0, 1)  # (batch * frames, 3, height, width)
    latents = vae.encode(flat.to(device=vae.device, dtype=vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    unflattened: Tensor = latents.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2).contiguous()
    return unflattened


class LatentUNet(Family):
    """U-Nets on latents of 4 channels that are encoded and decoded frame by frame."""

    components = {
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "scheduler": (),
    }
    options = {"image_latents_fill": "position", "image_latents_mode": "sample"}
    own_options = ("image_latents_fill", "image_latents_mode")
    networks = ("unet",)
    offload_order = "text_encoder->image_encoder->unet->vae"
    least_blocks = 2
    stacks_branches = True

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        for name, known in (("image_latents_fill", ("position", "repeat")), ("image_latents_mode", ("sample", "mode"))):
            if options[name] not in known:
                raise ValueError(f"{name}: {options[name]!r} is not one of {', '.join(known)}")

    def default_side(self, parts: Parts) -> Any:
        """Return the U-Net's own size in latents, a number or (height, width); None where it says nothing."""
        return parts.unet.config.sample_size

    def defaults_of(self, parts: Parts) -> Defaults:
        side, step = self.default_side(parts), self.size_step(parts)
        if side is None:
            return self.defaults
        height, width = side if isinstance(side, (tuple, list)) else (side, side)
        return replace(self.defaults, height=height * step, width=width * step)

    def compression(self, parts: Parts) -> tuple[int, int]:
        return 1, halvings(parts.vae)

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        """Return `text`, `(batch, tokens, width)`.

        Args:
            clip_skip: layers to leave out at the end; the final norm is applied all the same.
        """
        encoder = parts.text_encoder
        tokens = tokenize(parts.tokenizer, encoder, texts)
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        output = encoder(
            tokens.input_ids.to(parts.device),
            attention_mask=None if mask is None else mask.to(parts.device),
            output_hidden_states=clip_skip is not None,
        )
        if clip_skip is None:
            return {"text": output.last_hidden_state}
        # transformers 5 took the inner `text_model` away (diffusers #14124).
        inner: Any = getattr(encoder, "text_model", encoder)
        return {"text": inner.final_layer_norm(output.hidden_states[-(clip_skip + 1)])}

    def encode_pixels(self, parts: Parts, pixels: Tensor, generator: Generators) -> Tensor:
        """Return scaled latents of pictures, `(batch, 4, height / f, width / f)`.

        Args:
            pixels: `(batch, 3, height, width)` in [-1, 1].
            generator: of the posterior's sample, one or one for each picture; None is torch's global one.
                Unused in mode "mode".
        """
        vae = parts.vae
        posterior = vae.encode(pixels.to(device=parts.device, dtype=vae.dtype)).latent_dist
        if parts.options["image_latents_mode"] == "mode":
            latents = posterior.mode()
        elif isinstance(generator, list):
            each = zip(posterior.mean, posterior.std, generator, strict=True)
            latents = torch.stack(
                [m + s * randn_tensor(m.shape, generator=g, device=m.device, dtype=m.dtype) for m, s, g in each]
            )
        else:
            latents = posterior.sample(generator)
        return cast(Tensor, (latents * vae.config.scaling_factor).to(parts.dtype))

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        return encode_frames(parts.vae, clips)

    def frames_at_once(self, height: int, width: int) -> int | None:
        """Return one, as published, or as many small ones as have the pixels of one of 512 x 512."""
        return max(1, _DECODED_PIXELS // (height * width))

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae, (batch, _, frames, _, _) = parts.vae, z.shape
        flat = (z / vae.config.scaling_factor).transpose(1, 2).flatten(0, 1)  # (batch * frames, 4, h, w)
        pieces = [vae.decode(piece.to(vae.dtype)).sample for piece in flat.split(chunk or flat.shape[0])]
        video: Tensor = torch.cat(pieces).unflatten(0, (batch, frames)).transpose(1, 2)
        return video.float()
