"""CogVideoX (Yang et al. 2024): image to video of versions 1.0 and 1.5, after diffusers 0.42.1.

- The network sees noise and the picture's latents side by side; those of all frames but the first are zeros.
- 1.0 adds position embeddings that it learned, which hold for one size alone.
- 1.5 reads two latent frames as one token. Where their number is odd it makes one more, which comes first and is thrown
  away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import get_resize_crop_region_for_grid
from torch import Tensor, nn

from ..prompts import tokenize
from .base import Cond, Defaults, Family, Parts, Request, check_widths, halvings, sampled_latents


class CogVideoXFamily(Family):
    """Checkpoints of `CogVideoXImageToVideoPipeline`.

    The network is given `text` `(batch, 226, width)` and `picture`, latents `(batch, 16, frames, h, w)`.
    """

    name = "cogvideox"
    pipeline_class = "CogVideoXImageToVideoPipeline"
    components = {
        "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "TokenizersBackend"),
        "text_encoder": ("T5EncoderModel",),
        "vae": ("AutoencoderKLCogVideoX",),
        "transformer": ("CogVideoXTransformer3DModel",),
        "scheduler": (),
    }
    offload_order = "text_encoder->transformer->vae"
    text_tokens = 226
    defaults = Defaults(frames=49, height=480, width=720, steps=50, guidance_scale=6.0, fps=8)
    small = Defaults(frames=9, height=64, width=64, steps=8, guidance_scale=6.0, fps=8)
    # In training one picture in twenty was put out (`noised_image_dropout: 0.05` in the authors' configs).
    drops_picture = True
    noise_by_frame = True
    steps_by_frame = True
    licence = "CogVideoX licences differ by release: read the one beside the weights before serving or distilling"

    def check(self, components: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        check_widths(components, {"text_encoder": components["transformer"].config.text_embed_dim})
        channels, latents = components["transformer"].config.in_channels, components["vae"].config.latent_channels
        if channels != 2 * latents:
            raise ValueError(
                f"transformer: takes {channels} channels where image to video has {2 * latents}; a checkpoint for text "
                "alone makes clips without a picture"
            )

    def defaults_of(self, parts: Parts) -> Defaults:
        found, config = super().defaults_of(parts), parts.transformer.config
        if config.use_learned_positional_embeddings:
            height, width = self._learned_size(parts)
            return replace(found, frames=config.sample_frames, height=height, width=width)
        if config.patch_size_t is not None and found is not self.small:
            # Its config says 300 x 300 latents, which is how far its positions reach and no size of a clip.
            return replace(found, frames=81, height=768, width=1360, fps=16)
        return found

    def _learned_size(self, parts: Parts) -> tuple[int, int]:
        """Return height and width in pixels of a checkpoint whose positions are learned."""
        config, (_, spatial) = parts.transformer.config, self.compression(parts)
        return config.sample_height * spatial, config.sample_width * spatial

    def compression(self, parts: Parts) -> tuple[int, int]:
        return int(parts.vae.config.temporal_compression_ratio), halvings(parts.vae)

    def frame_step(self, parts: Parts) -> int:
        # Its autoencoder doubles an even number of latent frames without holding the first one apart: 2 give 8 frames.
        return 2 * super().frame_step(parts)

    def size_step(self, parts: Parts) -> int:
        return super().size_step(parts) * int(parts.transformer.config.patch_size)

    def latent_shape(self, parts: Parts, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        if parts.transformer.config.use_learned_positional_embeddings:
            for name, given, own in zip(("height", "width"), (height, width), self._learned_size(parts), strict=True):
                if given != own:
                    raise ValueError(
                        f"{name}: {given} is not {own}, the one for which this CogVideoX checkpoint learned positions"
                    )
        channels, made, high, wide = super().latent_shape(parts, frames, height, width)
        return channels, made + -made % (parts.transformer.config.patch_size_t or 1), high, wide

    def encode_text(self, parts: Parts, texts: Sequence[str], clip_skip: int | None = None) -> Cond:
        encoder = parts.text_encoder
        tokens = tokenize(parts.tokenizer, encoder, texts, limit=self.text_tokens)
        # As published: the text encoder attends to the padding, and so does the transformer.
        return {"text": encoder(tokens.input_ids.to(parts.device))[0]}

    def encode_picture(self, parts: Parts, request: Request) -> Cond:
        vae, count = parts.vae, len(request.images)
        first = sampled_latents(parts, request)  # (batch, channels, 1, h, w)
        # Some checkpoints were trained on latents that were divided by the factor.
        scale = vae.config.scaling_factor
        first = first / scale if vae.config.invert_scale_latents else first * scale
        _, frames, height, width = self.latent_shape(parts, request.frames, request.height, request.width)
        others = first.new_zeros(count, first.shape[1], frames - 1, height, width)
        return {"picture": torch.cat([first, others], dim=2).to(parts.dtype)}

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        model = cast(Any, network)
        seen = torch.cat([z, cond["picture"]], dim=1).transpose(1, 2)  # (batch, frames, channels, h, w)
        # 1.5 is told an offset of its flow, which diffusers' own class has at 2 for every request.
        offset = None if model.config.ofs_embed_dim is None else z.new_full((1,), 2.0)
        output = model(
            hidden_states=seen,
            encoder_hidden_states=cond["text"],
            timestep=t.expand(z.shape[0]),
            ofs=offset,
            image_rotary_emb=_positions(model.config, z),
            return_dict=False,
        )
        return cast(Tensor, output[0]).transpose(1, 2)

    def encode_clip(self, parts: Parts, clips: Tensor) -> Tensor:
        vae = parts.vae
        latents = vae.encode(clips.to(parts.device, vae.dtype)).latent_dist.mode()
        return cast(Tensor, latents * vae.config.scaling_factor)

    def decode(self, parts: Parts, z: Tensor, chunk: int | None = None, request: Request | None = None) -> Tensor:
        vae = parts.vae
        if request is not None:
            kept = super().latent_shape(parts, request.frames, request.height, request.width)[1]
            z = z[:, :, z.shape[2] - kept :]
        z = (1 / vae.config.scaling_factor * z).to(vae.dtype)
        return cast(Tensor, vae.decode(z, return_dict=False)[0]).float()


def _positions(config: Any, z: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines of the rotary embedding of latents, `(tokens, head width)` each, float32."""
    if not config.use_rotary_positional_embeddings:
        return None
    (frames, height, width), device = z.shape[2:], z.device
    patch, patch_t = config.patch_size, config.patch_size_t
    grid, most = (height // patch, width // patch), (config.sample_height // patch, config.sample_width // patch)
    if patch_t is None:  # positions of the published size, stretched over this one
        crop = get_resize_crop_region_for_grid(grid, most[1], most[0])
        found = get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames, device=device)
    else:
        slices = {"grid_type": "slice", "max_size": most}
        found = get_3d_rotary_pos_embed(
            config.attention_head_dim, None, grid, frames // patch_t, device=device, **slices
        )
    return cast(tuple[Tensor, Tensor], found)
