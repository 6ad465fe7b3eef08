"""Backgrounds: plain, drawn and photograph-like pictures made from random numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .sprites import _polygon, odd_polygon


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _colour(generator: torch.Generator) -> Tensor:
    return torch.rand(3, generator=generator)


def _axes(size: int) -> tuple[Tensor, Tensor]:
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _blend(mix: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a[:, None, None] * (1 - mix) + b[:, None, None] * mix


def solid(generator: torch.Generator, size: int) -> Tensor:
    """Draw one colour."""
    return _colour(generator)[:, None, None].expand(3, size, size).clone()


def gradient(generator: torch.Generator, size: int) -> Tensor:
    """Draw a linear or radial gradient between two colours."""
    x, y = _axes(size)
    if torch.rand((), generator=generator) < 0.5:
        angle = _uniform(generator, 0, 2 * math.pi)
        mix = (x * math.cos(angle) + y * math.sin(angle)) / 2.8 + 0.5
    else:
        cx, cy = _uniform(generator, -0.8, 0.8), _uniform(generator, -0.8, 0.8)
        mix = torch.hypot(x - cx, y - cy) / 2.2
    return _blend(mix.clamp(0, 1), _colour(generator), _colour(generator))


def stripes(generator: torch.Generator, size: int) -> Tensor:
    """Draw soft or hard stripes or checks, of low contrast."""
    x, y = _axes(size)
    angle, waves = _uniform(generator, 0, math.pi), _uniform(generator, 1.5, 5)
    phase = waves * math.pi * (x * math.cos(angle) + y * math.sin(angle))
    wave = torch.sin(phase)
    if torch.rand((), generator=generator) < 0.4:
        wave = wave * torch.sin(waves * math.pi * (y * math.cos(angle) - x * math.sin(angle)))
    mix = torch.sigmoid(wave * _uniform(generator, 1, 8))
    a = _colour(generator)
    b = (a + 0.5 * (_colour(generator) - 0.5)).clamp(0, 1)
    return _blend(mix, a, b)


def clouds(generator: torch.Generator, size: int) -> Tensor:
    """Draw noise with a 1/f spectrum, as natural pictures have it (Field 1987), in correlated colours."""
    frequency = torch.fft.fftfreq(size)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    radius[0, 0] = float("inf")
    slope = _uniform(generator, 1.1, 2.0)
    spectrum = torch.fft.fft2(torch.randn(3, size, size, generator=generator)) / radius**slope
    noise = torch.fft.ifft2(spectrum).real
    noise = noise / noise.std(dim=(1, 2), keepdim=True)
    shared = _uniform(generator, 0.5, 1.0)  # light varies more than hue does
    noise = shared * noise[:1] + (1 - shared) * noise
    contrast = _uniform(generator, 0.06, 0.22)
    picture: Tensor = _colour(generator)[:, None, None] + contrast * noise
    return picture.clamp(0, 1)


def scene(generator: torch.Generator, size: int) -> Tensor:
    """Draw a sky over ground with a few hills or blocks in front: the layout of many photographs."""
    x, y = _axes(size)
    horizon = _uniform(generator, -0.4, 0.5)
    tilt = _uniform(generator, -0.2, 0.2)
    bend = _uniform(generator, 0, 0.2) * torch.sin(_uniform(generator, 1, 5) * x + _uniform(generator, 0, 6))
    ground = torch.sigmoid((y - horizon - tilt * x - bend) * size / 3)
    picture = gradient(generator, size) * (1 - ground) + clouds(generator, size) * ground
    for _ in range(int(torch.randint(0, 3, (), generator=generator))):
        picture = _stamp(picture, generator, size)
    return picture


def drawing(generator: torch.Generator, size: int) -> Tensor:
    """Draw flat areas with hard edges."""
    picture = solid(generator, size)
    for _ in range(int(torch.randint(2, 7, (), generator=generator))):
        picture = _stamp(picture, generator, size)
    return picture


def _stamp(picture: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Paint one random polygon over a picture."""
    x, y = _axes(size)
    radius = _uniform(generator, 0.2, 0.9)
    cx, cy = _uniform(generator, -1, 1), _uniform(generator, -1, 1)
    distance = _polygon((x - cx) / radius, (y - cy) / radius, odd_polygon(generator))
    mask = (0.5 - distance * radius * size / 2).clamp(0, 1)
    colour = 0.5 * _colour(generator) + 0.5 * picture.mean(dim=(1, 2))
    return picture * (1 - mask) + colour[:, None, None] * mask


KINDS = (solid, gradient, stripes, clouds, scene, drawing)


def plain_background(generator: torch.Generator, size: int) -> Tensor:
    """Return one colour or a gradient, `(3, size, size)`, float in [0, 1]."""
    kind = solid if torch.rand((), generator=generator) < 0.5 else gradient
    return kind(generator, size)


def random_background(generator: torch.Generator, size: int) -> Tensor:
    """Return one background, `(3, size, size)`, float in [0, 1]."""
    kind = KINDS[int(torch.randint(len(KINDS), (), generator=generator))]
    picture = kind(generator, size)
    if torch.rand((), generator=generator) < 0.3:  # out of focus
        kernel = int(torch.randint(1, 3, (), generator=generator)) * 2 + 1
        padded = F.pad(picture[None], (kernel // 2,) * 4, mode="replicate")
        picture = F.avg_pool2d(padded, kernel, stride=1)[0]
    return picture
