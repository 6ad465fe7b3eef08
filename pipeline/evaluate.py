"""Judges a model on held-out generated clips."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from .clips import ClipBatch
from .metrics import psnr_db


def pictures_of(batch: ClipBatch) -> list[Image.Image]:
    """First frames of generated clips, as the pictures that a person would send."""
    frames = (batch.clips[:, :, 0].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(frame) for frame in frames]


def first_frame_psnr_db(video: Tensor, batch: ClipBatch) -> Tensor:
    """PSNR of each clip's first frame against the picture it was made from, `(batch,)`, in dB.

    Args:
        video: `(batch, 3, frames, size, size)`, float in [0, 1].
    """
    return psnr_db(video[:, :, 0], batch.clips[:, :, 0])
