"""Pictures: checked, decoded, turned upright, cropped and scaled."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")

# Pixels of the shorter side that are worth keeping: more than any model here makes of them.
_ENOUGH = 2048

# What brings a picture upright, by its EXIF orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Keywords of texts that say how a picture is to be turned.
_PNG_TEXTS_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


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
    with _opened(data, limits, header_only=True) as picture:
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


@contextmanager
def _opened(data: bytes | Path, limits: PictureLimits, *, header_only: bool = False) -> Iterator[Image.Image]:
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        is_png = file.read(len(_PNG)) == _PNG
        file.seek(0)
        with _open(_without_texts(file, header_only=header_only) if is_png else file, limits) as picture:
            yield picture


def _without_texts(file: BinaryIO, *, header_only: bool) -> io.BytesIO:
    """A PNG without its texts, of which Pillow refuses those over 1 MiB. Programs keep whole workflows in them."""
    kept = io.BytesIO()
    kept.write(file.read(len(_PNG)))
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if header_only and kind == b"IDAT":
            kept.write(head)
            break
        body = file.read(length + 4)  # with the checksum; less where the file ends too early
        if kind not in _PNG_TEXTS or body.startswith(_PNG_TEXTS_KEPT):
            kept.write(head + body)
    kept.seek(0)
    return kept


def _open(source: BinaryIO, limits: PictureLimits) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The size is judged by our own limits, which name themselves in the error; damaged EXIF data does no harm.
            warnings.simplefilter("ignore")
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
    """Read a picture as people see it: upright, first frame of an animation, sRGB on white.

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
            return _to_rgb(_upright(picture))
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise InputError("image", "damaged", f"the picture is damaged or cut short ({error})") from error


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its camera was held. Of the EXIF data only the orientation is read: the rest may be of any kind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other tags
            turn = _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # damaged EXIF data makes Pillow raise many kinds; viewers ignore it
        return picture
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as sRGB on white, without anything that the file says beside its pixels."""
    profile = picture.info.get("icc_profile")
    chunks = None if profile or "srgb" in picture.info else _png_colours(picture.info)
    if picture.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 8 bits instead of scaling it.
        values = np.asarray(picture, dtype=np.float32) / 257
        picture = Image.fromarray(values.round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        alpha = picture.convert("RGBA").getchannel("A")
        opaque = picture.convert("L" if picture.mode in ("L", "LA") else "RGB")
        paper = Image.new("RGB", picture.size, (255, 255, 255))
        paper.paste(_by_chunks(opaque, chunks) if chunks else _to_srgb(opaque, profile), mask=alpha)
        picture = paper
    else:
        picture = _by_chunks(picture, chunks) if chunks else _to_srgb(picture, profile)
    picture.info = {}  # the profile does not hold any more
    return picture


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Return pixels of an ICC profile as sRGB; what has none is sRGB, as in browsers.

    A profile that is damaged, or of another kind of colours than the picture's, is ignored.
    """
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
            if mode == "RGB" and picture.mode != "CMYK":
                picture = picture.convert("RGB")
            if picture.mode == "1":
                picture = picture.convert("L")
            if picture.mode == mode:
                converted = ImageCms.profileToProfile(
                    picture,
                    source,
                    ImageCms.createProfile("sRGB"),
                    renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    outputMode="RGB",
                    flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
                )
                assert converted is not None  # it is not done in place
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
            pass
    return picture.convert("RGB")


# Chromaticities of white, red, green and blue (x, y), and XYZ to linear sRGB (IEC 61966-2-1).
_SRGB_CHROMATICITY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_XYZ_TO_SRGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])


def _png_colours(info: Mapping[str | tuple[int, int], Any]) -> tuple[float, NDArray[np.float32]] | None:
    """Return what the chunks gAMA and cHRM of a PNG say: its gamma, and the matrix from its linear colours to sRGB's.

    As in browsers, chromaticities count only beside a gamma. None where the picture is sRGB, or the values are absurd.
    """
    gamma, places = info.get("gamma"), info.get("chromaticity") or _SRGB_CHROMATICITY
    if gamma is None or not 0.1 <= gamma <= 5:
        return None
    own = np.allclose(places, _SRGB_CHROMATICITY, atol=0.002)
    if own and abs(gamma - 1 / 2.2) < 0.005:  # what programs write that mean sRGB
        return None
    matrix = np.eye(3)
    if not own:
        x, y = np.array(places[0::2]), np.array(places[1::2])  # (4,): white, red, green, blue
        if not (y > 0.001).all():
            return None
        xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # (3, 4), each of luminance 1
        try:
            to_xyz = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
        except np.linalg.LinAlgError:
            return None
        matrix = _XYZ_TO_SRGB @ to_xyz
        matrix /= matrix.sum(axis=1, keepdims=True)  # its white stays white
    return float(gamma), matrix.astype(np.float32)


def _by_chunks(picture: Image.Image, colours: tuple[float, NDArray[np.float32]]) -> Image.Image:
    """Return pixels as sRGB whose gamma and primaries are known."""
    gamma, matrix = colours
    levels = (np.arange(256, dtype=np.float32) / 255) ** np.float32(1 / gamma)
    pixels = np.array(picture.convert("RGB"))
    for rows in np.array_split(pixels, math.ceil(pixels.size / 2**20)):  # views; floats of a large picture are large
        linear = (levels[rows] @ matrix.T).clip(0, 1)
        encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        rows[:] = (255 * encoded).round()
    return Image.fromarray(pixels)


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
    """Return RGB picture to `(1, 3, height, width)`, float in [-1, 1]."""
    import torch  # only here: a server checks headers long before PyTorch is loaded

    values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(values).permute(2, 0, 1)[None] * 2.0 - 1.0
