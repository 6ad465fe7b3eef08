"""Endless streams of training data, made in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..clips import ClipGenerator
from .text import build_feature_extractor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from .teacher import TeacherSettings


class _Frames(IterableDataset[Tensor]):
    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size, self.batch, self.seed = size, batch, seed

    def __iter__(self) -> Iterator[Tensor]:
        torch.set_num_threads(1)
        source = ClipGenerator(self.size, frames=2, seed=self.seed)
        while True:
            # Both frames of a clip: the same background behind two places or sizes of a sprite.
            clips = source.batch(self.batch // 2).clips
            yield clips.permute(0, 2, 1, 3, 4).reshape(-1, 3, self.size, self.size)


class FrameStream:
    """Batches of single frames, `(batch, 3, size, size)`, float in [0, 1]."""

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self._loader = DataLoader(_Frames(size, batch, seed), batch_size=None, num_workers=1, prefetch_factor=4)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._loader)


@dataclass
class EncodedBatch:
    """Clips as the U-Net's training sees them.

    Attributes:
        latents: `(batch, 4, frames, h, w)`, scaled.
        pixels: `(batch, 3, size, size)`, first frames normalised for the image encoder.
        tokens: `(batch, length)`, of the captions.
        blank_tokens: `(batch, length)`, of the empty text.
    """

    latents: Tensor
    pixels: Tensor
    tokens: Tensor
    blank_tokens: Tensor


class _Encoded(IterableDataset[EncodedBatch]):
    def __init__(self, settings: TeacherSettings, vae: Path, tokenizer: CLIPTokenizer, seed: int, plain: bool) -> None:
        self.settings, self.vae, self.tokenizer, self.seed, self.plain = settings, vae, tokenizer, seed, plain

    def __iter__(self) -> Iterator[EncodedBatch]:
        torch.set_num_threads(1)
        s = self.settings
        vae = AutoencoderKL.from_pretrained(self.vae).eval()
        source = ClipGenerator(
            s.size,
            s.frames,
            seed=self.seed,
            variety=not self.plain,
            plain_share=0.85 if self.plain else 0.2,
            often=s.often,
        )
        processor = build_feature_extractor(s.size)
        mean = torch.tensor(processor.image_mean)[:, None, None]
        std = torch.tensor(processor.image_std)[:, None, None]
        while True:
            made = source.batch(s.batch)
            frames = made.clips.transpose(1, 2).flatten(0, 1) * 2 - 1  # (batch * frames, 3, size, size)
            with torch.no_grad():
                latents = vae.encode(frames).latent_dist.mode() * vae.config.scaling_factor
            yield EncodedBatch(
                latents=latents.unflatten(0, (s.batch, s.frames)).transpose(1, 2).contiguous(),
                pixels=(made.clips[:, :, 0] - mean) / std,
                tokens=self._ids(made.captions),
                blank_tokens=self._ids([""] * s.batch),
            )

    def _ids(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: Tensor = tokens.input_ids
        return ids


class EncodedStream:
    """Batches of encoded clips.

    Args:
        plain: plain backgrounds and plain captions, to begin with.
    """

    def __init__(self, settings: TeacherSettings, vae: Path, tokenizer: CLIPTokenizer, seed: int, plain: bool) -> None:
        dataset = _Encoded(settings, vae, tokenizer, seed, plain)
        self._loader = DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8)

    def __iter__(self) -> Iterator[EncodedBatch]:
        return iter(self._loader)
