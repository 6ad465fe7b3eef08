# ruff: noqa: INP001  # a script, no package
"""Draws the sample pictures in assets/: scenes of our own, each with one sprite that a caption can name.

Run from the repository root: `python scripts/make_samples.py`. The same files come out each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from PIL.Image import Resampling

from pipeline.clips.backgrounds import clouds
from pipeline.clips.sprites import coverage
from pipeline.clips.vocabulary import COLOURS

SIZE = 384
# Drawn larger and scaled down, since PIL's shapes have jagged edges.
SCALE = 3
Colour = tuple[int, int, int]


def gradient(top: Colour, bottom: Colour) -> Image.Image:
    """A picture that goes from one colour at its top to another."""
    side = SIZE * SCALE
    mix = np.linspace(0, 1, side)[:, None, None]
    values = np.array(top) * (1 - mix) + np.array(bottom) * mix  # (side, 1, 3)
    return Image.fromarray(np.broadcast_to(values, (side, side, 3)).round().astype(np.uint8))


def hills(picture: Image.Image, base: float, height: float, waves: float, phase: float, colour: Colour) -> None:
    """A row of hills from the left edge to the right; lengths are shares of the picture."""
    side = picture.width
    line = [
        (x, side * (base - height * (math.sin(waves * x / side * 2 * math.pi + phase) * 0.5 + 0.5)))
        for x in range(0, side + SCALE, SCALE)
    ]
    ImageDraw.Draw(picture).polygon([*line, (side, side), (0, side)], fill=colour)


def ellipse(picture: Image.Image, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
    """Lengths are shares of the picture, as in all that follows."""
    side = picture.width
    box = ((x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side)
    ImageDraw.Draw(picture).ellipse(box, fill=colour)


def rectangle(picture: Image.Image, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    """Axis-aligned and filled."""
    side = picture.width
    ImageDraw.Draw(picture).rectangle((left * side, top * side, right * side, bottom * side), fill=colour)


def valley() -> Image.Image:
    """Hills under a summer sky."""
    picture = gradient((120, 182, 232), (222, 240, 250))
    for x, y, r in ((0.16, 0.20, 0.07), (0.24, 0.19, 0.09), (0.33, 0.21, 0.06), (0.76, 0.32, 0.06), (0.84, 0.31, 0.08)):
        ellipse(picture, x, y, r * 1.3, r * 0.6, (246, 250, 252))
    hills(picture, 0.86, 0.18, 1.1, 0.4, (126, 176, 132))
    hills(picture, 0.94, 0.14, 1.6, 2.2, (86, 148, 96))
    hills(picture, 1.02, 0.12, 1.2, 4.0, (58, 116, 72))
    return picture


def night() -> Image.Image:
    """A starry sky over mountains."""
    picture = gradient((16, 20, 52), (66, 62, 120))
    random = np.random.default_rng(3)
    for _ in range(70):
        x, y = random.random(2)
        ellipse(picture, x, y * 0.75, r := 0.0015 + 0.003 * random.random(), r, (190, 196, 228))
    hills(picture, 0.92, 0.20, 1.3, 1.0, (42, 44, 90))
    hills(picture, 1.00, 0.18, 2.1, 3.0, (26, 28, 62))
    return picture


def sea() -> Image.Image:
    """A sea in the evening."""
    picture = gradient((250, 196, 150), (252, 226, 190))
    rectangle(picture, 0, 0.58, 1, 1, (40, 112, 146))
    for k in range(9):
        y = 0.61 + 0.045 * k
        for j in range(5):
            x = (0.13 * k + 0.23 * j) % 1.1
            rectangle(picture, x, y, x + 0.07, y + 0.006, (84, 152, 180))
    return picture


def court() -> Image.Image:
    """A brick wall behind a court."""
    picture = gradient((206, 214, 222), (178, 188, 200))
    for row in range(9):
        for column in range(-1, 8):
            left, top = column * 0.15 + (0.075 if row % 2 else 0), row * 0.085
            rectangle(picture, left + 0.004, top + 0.004, left + 0.146, top + 0.081, (172, 120 + row * 2, 104))
    rectangle(picture, 0, 0.76, 1, 1, (92, 128, 112))
    rectangle(picture, 0, 0.86, 1, 0.875, (226, 232, 226))
    return picture


def letter() -> Image.Image:
    """Ruled paper."""
    picture = gradient((244, 238, 222), (232, 222, 200))
    for k in range(1, 14):
        rectangle(picture, 0, k / 14, 1, k / 14 + 0.003, (190, 202, 220))
    rectangle(picture, 0.12, 0, 0.124, 1, (224, 160, 160))
    return picture


def stone() -> Image.Image:
    """Noise with the spectrum of natural pictures: as near to a photograph as a program draws."""
    values = clouds(torch.Generator().manual_seed(21), SIZE)
    grey = 0.55 + 0.9 * (values.mean(dim=0, keepdim=True) - values.mean())
    tinted = grey * torch.tensor([0.96, 0.98, 0.90])[:, None, None]
    array = (tinted.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(array).resize((SIZE * SCALE, SIZE * SCALE), Resampling.BICUBIC)


def with_sprite(background: Image.Image, colour: str, shape: str, x: float, y: float, radius: float) -> Image.Image:
    """Paint a sprite of the caption vocabulary; `x`, `y` and `radius` are shares of the picture's side."""
    side = background.width
    place = [torch.tensor([value * side]) for value in (x, y, radius)]
    mask = coverage(shape, place[0], place[1], place[2], side)[0].numpy()[..., None]
    picture: NDArray[np.float32] = np.asarray(background, dtype=np.float32)
    paint = np.array(COLOURS[colour], dtype=np.float32) * 255
    blended = picture * (1 - mask) + paint * mask
    return Image.fromarray(blended.round().astype(np.uint8))


SAMPLES: dict[str, tuple[Callable[[], Image.Image], str, str, float, float, float]] = {
    "balloon": (valley, "red", "circle", 0.50, 0.66, 0.15),
    "night": (night, "yellow", "star", 0.27, 0.38, 0.16),
    "sail": (sea, "white", "triangle", 0.72, 0.52, 0.16),
    "ball": (court, "orange", "circle", 0.52, 0.72, 0.14),
    "letter": (letter, "pink", "heart", 0.54, 0.50, 0.12),
    "stone": (stone, "blue", "diamond", 0.45, 0.30, 0.15),
}


def main() -> None:
    """Write all samples."""
    folder = Path(__file__).resolve().parent.parent / "assets"
    folder.mkdir(exist_ok=True)
    for name, (scene, colour, shape, x, y, radius) in SAMPLES.items():
        picture = with_sprite(scene(), colour, shape, x, y, radius)
        picture = picture.filter(ImageFilter.GaussianBlur(SCALE / 3)).resize((SIZE, SIZE), Resampling.LANCZOS)
        if scene is stone:
            picture.save(folder / f"{name}.jpg", quality=92)
        else:
            picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
