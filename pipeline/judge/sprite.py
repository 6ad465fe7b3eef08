"""What became of a sprite and of what lies behind it, in the last frame of a clip whose truth is known."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clips.motion import colour_of, cover


def outline_iou(clip: Tensor, truth: Tensor, mask: Tensor, background: Tensor) -> float:
    """Return intersection over union of a sprite's outline in a clip's last frame and in the true one.

    Args:
        clip, truth: `(3, frames, height, width)`, float in [0, 1].
        mask: `(frames, height, width)`, how much of each pixel the sprite covers.
        background: `(3, height, width)`.
    """
    true = mask[-1] > 0.5
    seen = _covered(clip, truth, mask, background)
    told = (truth[:, -1] - background).square().sum(dim=0) + (clip[:, -1] - background).square().sum(dim=0) > 0.01
    true, seen = true & told, seen & told  # where the background has the sprite's colour, nobody sees an outline
    union = float((true | seen).sum())
    return float((true & seen).sum()) / union if union else 1.0


def _covered(clip: Tensor, truth: Tensor, mask: Tensor, background: Tensor) -> Tensor:
    colour = colour_of(truth[:, -1], mask[-1])
    return cover(clip[:, -1:], background, colour)[0] > 0.5


def colour_error(clip: Tensor, truth: Tensor, mask: Tensor, background: Tensor) -> float:
    """Return distance in CIE L*a*b* (CIE 1976) between the sprite's mean colour in the last frame and the true one.

    It is measured where the clip shows the sprite; where it shows none, in its true place. 2.3 is just noticeable.
    """
    covered = _covered(clip, truth, mask, background)
    eroded = covered.float()[None, None]
    eroded = torch.nn.functional.avg_pool2d(eroded, 3, stride=1, padding=1, count_include_pad=False)[0, 0] > 0.99
    place = eroded if bool(eroded.any()) else covered if bool(covered.any()) else mask[-1] > 0.5
    own, true = clip[:, -1][:, place].mean(dim=1), colour_of(truth[:, -1], mask[-1])
    return float((lab(own) - lab(true)).norm())


def background_psnr_db(clip: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Return PSNR in dB of the last frame where the sprite never was and is not."""
    outside = mask[-1] < 0.01
    error = (clip[:, -1] - truth[:, -1])[:, outside].square().mean().clamp(min=1e-10)
    return float(-10 * torch.log10(error))


def lab(colour: Tensor) -> Tensor:
    """Return CIE L*a*b* of an sRGB colour `(3,)` in [0, 1], for the white of D65 (IEC 61966-2-1)."""
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    to_xyz = colour.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    ratio = to_xyz @ linear / colour.new_tensor([0.95047, 1.0, 1.08883])
    f = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=1e-9) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
