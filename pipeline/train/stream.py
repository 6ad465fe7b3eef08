"""Endless streams of training data, made in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..clips import ClipGenerator
from ..model.families.unet import encode_frames
from .settings import TeacherSettings
from .text import build_feature_extractor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


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


def frames(size: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield batches of single frames, `(batch, 3, size, size)`, float in [0, 1]."""
    return iter(DataLoader(_Frames(size, batch, seed), batch_size=None, num_workers=1, prefetch_factor=4))


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
        mean, std = (torch.tensor(one)[:, None, None] for one in (processor.image_mean, processor.image_std))
        while True:
            made = source.batch(s.batch)
            yield EncodedBatch(
                latents=made.clips if self.vae is None else _encoded(self.vae, made.clips),
                pixels=(made.clips[:, :, 0] - mean) / std,
                tokens=self._ids(made.captions),
                blank_tokens=self._ids([""] * s.batch),
            )

    def _ids(self, captions: list[str]) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = tokens.input_ids
        return ids


@torch.no_grad()
def _encoded(vae: AutoencoderKL, clips: Tensor) -> Tensor:
    return encode_frames(vae, clips * 2 - 1)


def encoded_batches(
    settings: TeacherSettings, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, plain: bool
) -> Iterator[EncodedBatch]:
    """Yield batches of encoded clips, on the autoencoder's device.

    On a processor the process that makes the clips encodes them too; a GPU encodes them itself.

    Args:
        plain: plain backgrounds and plain captions, to begin with.
    """
    on_gpu, device = vae.device.type != "cpu", vae.device
    dataset = _Clips(settings, None if on_gpu else vae, tokenizer, seed, plain)
    for batch in DataLoader(dataset, batch_size=None, num_workers=settings.workers, prefetch_factor=8):
        if on_gpu:
            moved = [part.to(device) for part in (batch.latents, batch.pixels, batch.tokens, batch.blank_tokens)]
            yield EncodedBatch(_encoded(vae, moved[0]), *moved[1:])
        else:
            yield batch
