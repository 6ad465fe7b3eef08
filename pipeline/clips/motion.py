"""Reads the motion of a sprite back out of a clip, given its colour and the empty background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the frame's height (travel) and of the first area (growth). They lie well below what
# the generator draws (travel from .25, jumps from .17, area from x1.8 or to x.55), so that speed is not judged.
_LEAST_TRAVEL = 0.10
_LEAST_GROWTH = 1.5


@dataclass(frozen=True)
class MeasuredMotion:
    """Where the sprite is in each frame.

    Attributes:
        x, y: `(frames,)`, centroid in shares of the frame's height.
        area: `(frames,)`, in shares of the frame's area.
    """

    x: Tensor
    y: Tensor
    area: Tensor


def cover(clip: Tensor, background: Tensor, colour: Tensor) -> Tensor:
    """Return how much of each pixel a sprite covers, `(frames, height, width)`, 0 to 1.

    A frame is `(1 - a) * background + a * colour`; `a` of each pixel is its least-squares solution.
    Pixels where the background has nearly the sprite's colour tell nothing and are 0.

    Args:
        clip: `(3, frames, height, width)`, float in [0, 1].
        background: `(3, height, width)`.
        colour: `(3,)`.
    """
    towards = colour[:, None, None] - background  # (3, H, W)
    power = (towards**2).sum(dim=0)  # (H, W)
    alpha = ((clip - background[:, None]) * towards[:, None]).sum(dim=0) / power.clamp(min=1e-6)
    # What is left of the pixel when the sprite is taken out tells other colours from this one.
    rest = clip - background[:, None] - alpha[None] * towards[:, None]
    same_colour = (rest**2).sum(dim=0) < 0.5 * power
    return torch.where((power > 0.03) & same_colour & (alpha > 0.4), alpha.clamp(0, 1), torch.zeros_like(alpha))


def measure_motion(clip: Tensor, background: Tensor, colour: Tensor) -> MeasuredMotion:
    """Return centroid and area of a sprite over time. Arguments are those of `cover`."""
    alpha = cover(clip, background, colour)
    height, width = alpha.shape[-2:]
    ys = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    xs = (torch.arange(width, dtype=torch.float32) + 0.5) / height
    mass = alpha.sum(dim=(1, 2))  # (frames,)
    safe = mass.clamp(min=1e-6)
    return MeasuredMotion(
        x=(alpha * xs[None, None, :]).sum(dim=(1, 2)) / safe,
        y=(alpha * ys[None, :, None]).sum(dim=(1, 2)) / safe,
        area=mass / (height * width),
    )


def colour_of(frame: Tensor, mask: Tensor) -> Tensor:
    """Return the mean colour `(3,)` of a sprite in a frame `(3, height, width)` with its mask `(height, width)`."""
    inside = mask > min(0.99, float(mask.max()) - 1e-3)  # a pixel that it covers so much shows its colour alone
    return frame[:, inside].mean(dim=1)


def classify_motion(measured: MeasuredMotion) -> str:
    """Return the name in `MOTIONS` that fits best, or `"unclear"` when the sprite is lost."""
    if float(measured.area.min()) < 0.003:
        return "unclear"
    dx = float(measured.x[-1] - measured.x[0])
    dy = float(measured.y[-1] - measured.y[0])
    middle = len(measured.y) // 2
    hop = float((measured.y[0] + measured.y[-1]) / 2 - measured.y[middle - 1 : middle + 1].mean())
    growth = float(measured.area[-1] / measured.area[0])
    if hop > max(_LEAST_TRAVEL, abs(dx), abs(dy)):
        return "jumps"
    if max(abs(dx), abs(dy)) > _LEAST_TRAVEL:
        if abs(dx) > abs(dy):
            return "moves right" if dx > 0 else "moves left"
        return "moves down" if dy > 0 else "moves up"
    if growth > _LEAST_GROWTH:
        return "grows"
    if growth < 1 / _LEAST_GROWTH:
        return "shrinks"
    return "stays still"
