"""Figures of merit of pictures and clips."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr_db(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each item of a batch.

    Args:
        output, target: `(batch, ...)`, float, peak 1. Values outside [0, 1] are clamped, as a file
            of 8-bit pixels would.

    Returns:
        `(batch,)`, in dB, at most 100.
    """
    error = (output.clamp(0, 1) - target.clamp(0, 1)) ** 2
    return -10 * torch.log10(error.flatten(1).mean(dim=1).clamp(min=1e-10))
