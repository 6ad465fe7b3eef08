"""Pictures: checked, decoded, turned upright, cropped and scaled."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")

# Pixels of the shorter side that are worth keeping: more than any model here makes of them.
_ENOUGH = 2048


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be; anything else is refused before its pixels are decoded."""

    max_bytes: int = 16 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 16_384
    min_side: int = 8


def check_header(data: bytes | Path, limits: PictureLimits | None = None) -> tuple[int, int]:
    """Look at a picture's header only; cheap enough for an event loop.

    Returns:
        Width and height in pixels, as stored.

    Raises:
        InputError: not a picture, of another format, or outside the limits; `field` is "image".
    """
    limits = limits or PictureLimits()
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    if size == 0:
        raise InputError("image", "empty", "the file is empty")
    if size > limits.max_bytes:
        raise InputError(
            "image", "too_large", f"{size} bytes is over the limit of {limits.max_bytes} bytes", status=413
        )
    with _opened(data, limits) as picture:
        width, height = picture.size
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise InputError(
            "image",
            "too_many_pixels",
            f"{width}x{height} is over the limit of {limits.max_pixels} pixels and {limits.max_side} pixels a side",
        )
    if min(width, height) < limits.min_side:
        raise InputError("image", "too_small", f"{width}x{height} is below the least side of {limits.min_side} pixels")
    return width, height


def _opened(data: bytes | Path, limits: PictureLimits) -> Image.Image:
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with warnings.catch_warnings():
            # The size is judged by our own limits, which name themselves in the error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        # Pillow's own limit, which is higher than ours, and which it does not let one look past.
        raise InputError(
            "image", "too_many_pixels", f"the picture is far over the limit of {limits.max_pixels} pixels"
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(
            "image", "not_an_image", f"not a readable picture; send one of {', '.join(FORMATS)}", status=415
        ) from error


def decode(data: bytes | Path, limits: PictureLimits | None = None) -> Image.Image:
    """Read a picture as people see it: upright, first frame of an animation, RGB on white.

    Raises:
        InputError: as `check_header`, or the data ends too early or is damaged.
    """
    limits = limits or PictureLimits()
    check_header(data, limits)
    with _opened(data, limits) as opened:
        try:
            # A JPEG can be decoded at a fraction of its size; far fewer pixels are ever used.
            opened.draft("RGB", (_ENOUGH, _ENOUGH))
            opened.load()
            factor = min(opened.size) // _ENOUGH
            shrinks = opened.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in opened.info
            picture: Image.Image = opened.reduce(factor) if shrinks and factor > 1 else opened
            ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise InputError("image", "damaged", f"the picture is damaged or cut short ({error})") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 8 bits instead of scaling it.
        values = np.asarray(picture, dtype=np.float32) / 257
        return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale by area until the picture just covers `width` x `height`, then cut out its centre."""
    if image.size == (width, height):
        return image
    image = _shorten(image, width / height)
    scale = min(image.width / width, image.height / height)
    scaled = max(width, round(image.width // scale)), max(height, round(image.height // scale))
    image = image.resize(scaled, resample=Resampling.BOX)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _shorten(image: Image.Image, aspect: float) -> Image.Image:
    """Cut the ends off a picture that is far longer than it is to become.

    Scaled up as a whole, a ribbon of 16,000 x 8 pixels would take gigabytes before its centre is cut out.
    """
    longest_width = math.ceil(16 * aspect * image.height)
    longest_height = math.ceil(16 / aspect * image.width)
    width, height = min(image.width, longest_width), min(image.height, longest_height)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to `(1, 3, height, width)`, float in [-1, 1]."""
    import torch  # only here: a server checks headers long before PyTorch is loaded

    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(values).permute(2, 0, 1)[None] * 2.0 - 1.0
