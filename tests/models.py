"""A small I2VGen-XL with random weights: its clips are noise, and what runs it is real."""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def _merged(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply merges to a word as byte-pair encoding does: always the earliest one that fits."""
    rank = {pair: k for k, pair in enumerate(merges)}
    while True:
        pairs = [(rank[pair], k) for k, pair in enumerate(pairwise(parts)) if pair in rank]
        if not pairs:
            return parts
        _, k = min(pairs)
        parts = [*parts[:k], parts[k] + parts[k + 1], *parts[k + 2 :]]


def word_tokenizer(max_length: int = 20) -> Any:
    """Return CLIP's kind of byte-level BPE, with a token for each word of plain captions."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from pipeline.clips import COLOURS, MOTIONS, SHAPES

    texts = ("a", "an", "the", "and", *COLOURS, *SHAPES, *MOTIONS)
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = [token for character in bytes_to_unicode().values() for token in (character, character + "</w>")]
    merges: list[tuple[str, str]] = []
    for word in words:
        # Merges of earlier words come first in this one too ("an" in "orange"), so they are applied before what is left
        # is joined by new ones.
        parts = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.append(parts[0] + parts[1])
            parts = _merged(parts, merges)
    ids = {token: k for k, token in enumerate(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)


def clip_vision(size: int, width: int) -> Any:
    """Return a CLIP vision transformer of one layer over 16-pixel patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=size,
            patch_size=16,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=max(1, width // 16),
            projection_dim=width,
        )
    )


def clip_text(tokenizer: Any, width: int, layers: int) -> Any:
    """Return a CLIP text transformer with two heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def small_i2vgen(frames: int = 4, steps: int = 32, size: int = 32) -> Any:
    """Return a pipeline of three guided passes a step."""
    from pipeline.quiet import quiet_libraries

    quiet_libraries()
    import torch
    from diffusers import AutoencoderKL, I2VGenXLUNet

    from pipeline import ImageAnimationPipeline
    from pipeline.bench.presets import clip_pictures, zero_snr_schedule

    torch.manual_seed(0)
    width, tokenizer = 32, word_tokenizer()
    pipe = ImageAnimationPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 16, 16),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=size,
        ).eval(),
        text_encoder=clip_text(tokenizer, width, layers=1).eval(),
        tokenizer=tokenizer,
        unet=I2VGenXLUNet(
            sample_size=size // 4,
            down_block_types=("CrossAttnDownBlock3D",) * 2,
            up_block_types=("CrossAttnUpBlock3D",) * 2,
            block_out_channels=(16, 16),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=width,
            attention_head_dim=8,
        ).eval(),
        scheduler=zero_snr_schedule(),
        image_encoder=clip_vision(size, width).eval(),
        feature_extractor=clip_pictures(size),
        image_latents_fill="repeat",
        image_latents_mode="mode",
        num_inference_steps=steps,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        num_frames=frames,
        fps=8,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
