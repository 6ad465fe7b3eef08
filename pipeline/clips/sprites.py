"""Sprites: shapes as signed distance functions, so that edges are anti-aliased at any size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .vocabulary import SHAPES


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Return signed distance to a simple polygon, negative inside (after I. Quilez, "2D distance functions")."""
    distance = torch.full_like(x, float("inf"))
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ex * (y - ay) / (by - ay if by != ay else 1.0) + ax)
    distance = distance.sqrt()
    return torch.where(inside, -distance, distance)


def _regular(points: int, inner: float) -> list[tuple[float, float]]:
    """Return corners of a star with its tip up; `inner` is the radius of the notches."""
    corners = []
    for k in range(2 * points):
        radius = 1.0 if k % 2 == 0 else inner
        angle = math.pi * k / points - math.pi / 2
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return corners


def _heart() -> list[tuple[float, float]]:
    corners = []
    for k in range(24):
        t = 2 * math.pi * k / 24
        hx = 16 * math.sin(t) ** 3
        hy = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((hx / 16.5, -hy / 16.5))
    return corners


# Each takes coordinates in units of the sprite's radius, y downwards.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.95,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.82,
    "triangle": lambda x, y: _polygon(x, y, [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": lambda x, y: _polygon(x, y, _regular(5, 0.45)),
    "diamond": lambda x, y: (x.abs() + 0.75 * y.abs() - 0.78) / 1.25,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.68).abs() - 0.28,
    "cross": lambda x, y: torch.minimum(
        torch.maximum(x.abs() - 0.95, y.abs() - 0.32), torch.maximum(x.abs() - 0.32, y.abs() - 0.95)
    ),
    "heart": lambda x, y: _polygon(x, y, _heart()),
}


def odd_polygon(generator: torch.Generator) -> list[tuple[float, float]]:
    """Return corners of a random star-shaped polygon: a shape that has no name in a caption."""
    count = int(torch.randint(5, 10, (), generator=generator))
    turns = torch.rand(count, generator=generator).sort().values * 2 * math.pi
    radii = 0.45 + 0.55 * torch.rand(count, generator=generator)
    return [(float(r * math.cos(a)), float(r * math.sin(a))) for r, a in zip(radii, turns, strict=True)]


def coverage(
    shape: str | list[tuple[float, float]], centre_x: Tensor, centre_y: Tensor, radius: Tensor, size: int
) -> Tensor:
    """Return how much of each pixel a sprite covers.

    Args:
        shape: a name of `SHAPES`, or the corners of a polygon in units of the radius.
        centre_x, centre_y, radius: `(frames,)`, in pixels.
        size: height and width of a frame, in pixels.

    Returns:
        `(frames, size, size)`, float in [0, 1].
    """
    axis = torch.arange(size, dtype=torch.float32) + 0.5
    x = (axis[None, None, :] - centre_x[:, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centre_y[:, None, None]) / radius[:, None, None]
    x, y = torch.broadcast_tensors(x, y)  # (frames, size, size)
    if isinstance(shape, str):
        if shape not in SHAPES:
            raise ValueError(f"shape: {shape!r} is not one of {', '.join(SHAPES)}")
        distance = _DISTANCES[shape](x, y)
    else:
        distance = _polygon(x, y, shape)
    # One pixel of ramp around the edge.
    return (0.5 - distance * radius[:, None, None]).clamp(0, 1)
