"""Figures of merit of pictures and clips."""

from __future__ import annotations

from itertools import combinations
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

# Wang et al. 2004, section III-C: the window, and the constants that keep a division by nothing away.
_WINDOW, _WINDOW_SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr_db(output: Tensor, target: Tensor) -> Tensor:
    """Return peak signal-to-noise ratio of each item of a batch.

    Args:
        output, target: `(batch, ...)`, float, peak 1. Values outside [0, 1] are clamped, as a file
            of 8-bit pixels would.

    Returns:
        `(batch,)`, in dB, at most 100.
    """
    error = (output.clamp(0, 1) - target.clamp(0, 1)) ** 2
    return -10 * torch.log10(error.flatten(1).mean(dim=1).clamp(min=1e-10))


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Return structural similarity of each item of a batch (Wang et al. 2004, eq. 13).

    With means m, variances v and covariance c in a Gaussian window (11 x 11, sigma 1.5)::

        (2 m_x m_y + C1) (2 c_xy + C2) / ((m_x^2 + m_y^2 + C1) (v_x + v_y + C2))

    averaged over all places where the window lies within the picture, all frames and all channels. In a
    picture smaller than the window, the window is cut to the largest odd size that fits.

    Args:
        output, target: `(batch, channels, ..., height, width)`, float, peak 1; clips or pictures. Values
            outside [0, 1] are clamped, as in `psnr_db`.

    Returns:
        `(batch,)`, in [-1, 1]; 1 for equal clips.
    """
    if output.shape != target.shape:
        raise ValueError(f"output: shape {tuple(output.shape)} is not {tuple(target.shape)}, the target's")
    x, y = (part.clamp(0, 1).flatten(1, -3).double() for part in (output, target))  # (batch, maps, height, width)
    batch, maps = x.shape[:2]
    moments = torch.stack([x, y, x * x, y * y, x * y])  # (5, batch, maps, height, width)
    seen = _window_means(moments.flatten(0, 2)[:, None]).unflatten(0, (5, batch, maps)).squeeze(3)
    m_x, m_y, xx, yy, xy = seen  # each (batch, maps, height - 10, width - 10)
    v_x, v_y, c_xy = xx - m_x**2, yy - m_y**2, xy - m_x * m_y
    similar = (2 * m_x * m_y + _C1) * (2 * c_xy + _C2) / ((m_x**2 + m_y**2 + _C1) * (v_x + v_y + _C2))
    return cast(Tensor, similar.flatten(1).mean(dim=1).float())


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian-weighted means of `(n, 1, height, width)` wherever the window fits."""
    for dim, shape in ((2, (1, 1, -1, 1)), (3, (1, 1, 1, -1))):
        size = min(_WINDOW, maps.shape[dim] - 1 + maps.shape[dim] % 2)
        places = torch.arange(size, dtype=maps.dtype, device=maps.device) - size // 2
        weights = torch.exp(-(places**2) / (2 * _WINDOW_SIGMA**2))
        maps = F.conv2d(maps, (weights / weights.sum()).view(shape))
    return maps


def flicker(video: Tensor) -> Tensor:
    """Return temporal flicker of each clip: mean of |x(t - 1) - 2 x(t) + x(t + 1)| over pixels and inner frames.

    A change of brightness at a steady rate has none, and what jumps to and fro has much. Sprites that move
    over a background have some too, so that a figure is read beside that of the true clips.

    Args:
        video: `(batch, 3, frames, height, width)`, float in [0, 1].

    Returns:
        `(batch,)`, in steps of 255; 0 for clips of fewer than three frames.
    """
    if video.shape[2] < 3:
        return torch.zeros(len(video))
    return 255 * video.float().diff(n=2, dim=2).abs().flatten(1).mean(dim=1)


def diversity(videos: Tensor) -> Tensor:
    """Return how far clips of one picture and caption from several seeds lie apart: mean RMS distance of all pairs.

    Args:
        videos: `(batch, seeds, 3, frames, height, width)`, float in [0, 1].

    Returns:
        `(batch,)`, in steps of 255; 0 where the seed makes no difference.
    """
    if videos.shape[1] < 2:
        raise ValueError(f"videos: {videos.shape[1]} clips of a picture cannot be compared with each other")
    each = videos.float().flatten(2).unbind(dim=1)
    apart = [(one - other).square().mean(dim=1).sqrt() for one, other in combinations(each, 2)]
    return 255 * torch.stack(apart).mean(dim=0)
