"""Photographs that packages bring, as backgrounds: some to train on, others held back to judge by."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import StillmotionError

# Of scikit-image and of matplotlib. The other photographs of scikit-image's wheel are kept for judging.
TRAINED = ("astronaut.png", "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "hubble_deep_field.jpg",
           "retina.jpg", "ihc.png", "moon.png", "grace_hopper.jpg")  # fmt: skip
HELD_BACK = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
_LONGEST = 320  # pixels of the shorter side that are kept: a crop of 64 pixels needs no more


@cache
def photograph(name: str) -> Tensor:
    """Return a photograph, `(3, height, width)`, float in [0, 1].

    Raises:
        StillmotionError: the package that brings it is not installed.
    """
    package, folder = ("matplotlib", "mpl-data/sample_data") if name == "grace_hopper.jpg" else ("skimage", "data")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise StillmotionError(
            f"{name}: comes with {package}, which is not installed; pip install 'stillmotion[judge]'"
        )
    with Image.open(Path(found.origin).parent / folder / name) as file:
        image = file.convert("RGB")
    scale = _LONGEST / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).permute(2, 0, 1).float() / 255


def crop(generator: torch.Generator, size: int, held_back: bool = False) -> Tensor:
    """Return a random part of a random photograph, `(3, size, size)`, float in [0, 1], mirrored half of the time."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    names = HELD_BACK if held_back else TRAINED
    picture = photograph(names[int(torch.randint(len(names), (), generator=generator))])
    height, width = picture.shape[1:]
    side = int(min(height, width) * uniform(0.45, 1.0))
    y, x = int(uniform(0, height - side)), int(uniform(0, width - side))
    part = F.interpolate(picture[None, :, y : y + side, x : x + side], (size, size), mode="bilinear", antialias=True)[0]
    if uniform(0, 1) < 0.5:
        part = part.flip(-1)
    if not held_back:  # few photographs have to stand for many
        gain = torch.tensor([uniform(0.75, 1.2) for _ in range(3)])[:, None, None]
        part = part[torch.randperm(3, generator=generator)] if uniform(0, 1) < 0.3 else part
        part = part * gain * uniform(0.8, 1.1)
    return part.clamp(0, 1)
