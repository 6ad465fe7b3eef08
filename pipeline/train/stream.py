"""Endless streams of training data, made in a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..clips import ClipGenerator
from .text import build_feature_extractor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from .settings import TeacherSettings


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


class _Clips(IterableDataset[EncodedBatch]):
    """Batches whose latents are still frames, `(batch, 3, frames, size, size)`, where `vae` is None."""

    def __init__(
        self, settings: TeacherSettings, vae: AutoencoderKL | None, tokenizer: CLIPTokenizer, seed: int, plain: bool
    ) -> None:
        self.settings, self.vae, self.tokenizer, self.seed, self.plain = settings, vae, tokenizer, seed, plain

    def __iter__(self) -> Iterator[EncodedBatch]:
        torch.set_num_threads(1)
        s, worker = self.settings, get_worker_info()
        source = ClipGenerator(
            s.size,
            s.frames,
            seed=self.seed + (0 if worker is None else 1_000_003 * worker.id),
            variety=not self.plain,
            plain_share=0.85 if self.plain else 0.2,
            often=s.often,
        )
        processor = build_feature_extractor(s.size)
        mean = torch.tensor(processor.image_mean)[:, None, None]
        std = torch.tensor(processor.image_std)[:, None, None]
        while True:
            made = source.batch(s.batch)
            yield EncodedBatch(
                latents=made.clips if self.vae is None else encode_clips(self.vae, made.clips),
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


@torch.no_grad()
def encode_clips(vae: AutoencoderKL, clips: Tensor) -> Tensor:
    """Scaled latents `(batch, 4, frames, h, w)` of clips `(batch, 3, frames, size, size)` in [0, 1]."""
    frames = clips.transpose(1, 2).flatten(0, 1) * 2 - 1  # (batch * frames, 3, size, size)
    latents = vae.encode(frames).latent_dist.mode() * vae.config.scaling_factor
    unflattened: Tensor = latents.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2).contiguous()
    return unflattened


class EncodedStream:
    """Batches of encoded clips, on the autoencoder's device.

    On a processor the process that makes the clips encodes them too; a GPU encodes them itself.

    Args:
        plain: plain backgrounds and plain captions, to begin with.
    """

    def __init__(
        self, settings: TeacherSettings, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, plain: bool
    ) -> None:
        self._vae = vae
        dataset = _Clips(settings, vae if vae.device.type == "cpu" else None, tokenizer, seed, plain)
        self._loader = DataLoader(dataset, batch_size=None, num_workers=settings.workers, prefetch_factor=8)

    def __iter__(self) -> Iterator[EncodedBatch]:
        device = self._vae.device
        for batch in self._loader:
            if device.type == "cpu":
                yield batch
                continue
            moved = [part.to(device) for part in (batch.latents, batch.pixels, batch.tokens, batch.blank_tokens)]
            yield EncodedBatch(encode_clips(self._vae, moved[0]), *moved[1:])
