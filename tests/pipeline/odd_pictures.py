"""Odd pictures as people send them, made by this script: `python tests/pipeline/odd_pictures.py FOLDER` writes them.

Each shows the same chart of colours to those who look at it with a browser. The profiles and the arithmetic are written
from the standards (ICC.1:2022, IEC 61966-2-1), so that they check Pillow's colour management and do not repeat it.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

COLOURS = ((200, 60, 40), (60, 160, 80), (50, 80, 190), (220, 200, 120), (128, 128, 128), (235, 235, 235))
"""Of the chart's columns, in sRGB; none is outside of a wider profile."""

SIDE = 16


def chart(colours: tuple[tuple[int, int, int], ...] | np.ndarray = COLOURS) -> Image.Image:
    """Squares of colours, one beside the other."""
    row = np.repeat(np.asarray(colours, dtype=np.uint8)[None], SIDE, axis=1)
    return Image.fromarray(np.repeat(row, SIDE, axis=0))


def shown(picture: Image.Image) -> np.ndarray:
    """The colour in the middle of each square, `(squares, 3)`."""
    return np.asarray(picture.convert("RGB"))[SIDE // 2, SIDE // 2 :: SIDE].astype(int)


# ------------------------------------------------------------------ profiles

# Red, green, blue as XYZ under D50.
_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
_DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_D50 = (0.96420, 1.0, 0.82491)
_ADOBE_GAMMA = 563 / 256


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float | None) -> bytes:
    """A curve of ICC: a power, or sRGB's own where there is none."""
    if gamma is not None:
        return b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + _fixed(gamma)
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = "a test's profile".encode("utf-16-be")
    name = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": name, b"cprt": name, b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50), **tags}
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for kind, data in tags.items():
        table += kind + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_D50)
    return head.ljust(128, b"\0") + table + body


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float | None) -> bytes:
    """A profile of three primaries and one curve."""
    tags = {
        kind + b"XYZ": b"XYZ \0\0\0\0" + _fixed(*xyz) for kind, xyz in zip((b"r", b"g", b"b"), primaries, strict=True)
    }
    return _profile(b"RGB ", tags | {kind + b"TRC": _curve(gamma) for kind in (b"r", b"g", b"b")})


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with a power as its curve."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


P3 = rgb_profile(_DISPLAY_P3, None)
ADOBE = rgb_profile(_ADOBE_RGB, _ADOBE_GAMMA)
GREY_18 = grey_profile(1.8)


def _linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _stored(primaries: tuple[tuple[float, ...], ...], gamma: float | None) -> np.ndarray:
    """The chart's colours as a file with this profile holds them, `(colours, 3)`."""
    xyz = _linear(np.asarray(COLOURS) / 255) @ np.asarray(_SRGB)
    values = np.clip(xyz @ np.linalg.inv(np.asarray(primaries)), 0, 1)
    if gamma is None:
        encoded = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    else:
        encoded = values ** (1 / gamma)
    return (encoded * 255).round().astype(np.uint8)


def in_p3() -> Image.Image:
    """The chart in Display P3, as phones save it."""
    return chart(_stored(_DISPLAY_P3, None))


def in_adobe_rgb() -> Image.Image:
    """The chart in Adobe RGB, as cameras save it."""
    return chart(_stored(_ADOBE_RGB, _ADOBE_GAMMA))


# ------------------------------------------------------------------ files


def file_of(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """A picture's file, with as little loss as the format has."""
    best = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(file_format, {})
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **{**best, **options})
    return buffer.getvalue()


def exif(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """EXIF data of tags `(number, type, count, four bytes of value)`, of any type."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(order + "I", 8) + struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + head + body + bytes(4) + struct.pack(order + "II", 1, 1) * 4


MAKE, ORIENTATION = 0x010F, 0x0112
SHORT, RATIONAL, ASCII = 3, 5, 2
_TURNED_RIGHT = (ORIENTATION, SHORT, 1, struct.pack("<H", 6))


def turned(data: bytes) -> bytes:
    """The chart stored as a camera does that was held upright, with this EXIF data."""
    return file_of(chart().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=data)


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes], at_end: bool = False) -> bytes:
    """A PNG with more chunks, after its header or before its end."""
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    place = len(png) - 12 if at_end else 8 + 25  # IEND has 12 bytes; signature 8, IHDR 25
    return png[:place] + made + png[place:]


# Chromaticities of Adobe RGB (1998): white, red, green, blue.
_ADOBE_XY = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def _gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(100_000 / value))


def _primaries(places: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(100_000 * place) for place in places))


def _workflow(size: int) -> bytes:
    """Text that does not compress to nothing, as the workflows are that AI programs keep in their pictures."""
    return np.random.default_rng(0).integers(32, 127, size, dtype=np.uint8).tobytes()


def _grey() -> Image.Image:
    return chart(np.repeat(np.asarray(COLOURS)[:, :1], 3, axis=1)).convert("L")


def _grey_18(picture: Image.Image) -> Image.Image:
    """The same grey under a curve of 1.8."""
    linear = _linear(np.asarray(picture) / 255)
    return Image.fromarray((linear ** (1 / 1.8) * 255).round().astype(np.uint8))


def _with_alpha(picture: Image.Image) -> Image.Image:
    made = picture.convert("LA" if picture.mode == "L" else "RGBA")
    made.putalpha(255)
    return made


LIKE_THE_CHART: dict[str, Callable[[], bytes]] = {
    "display-p3.jpeg": lambda: file_of(in_p3(), "JPEG", icc_profile=P3),
    "display-p3.png": lambda: file_of(in_p3(), icc_profile=P3),
    "display-p3.webp": lambda: file_of(in_p3(), "WEBP", icc_profile=P3),
    "display-p3-alpha.png": lambda: file_of(_with_alpha(in_p3()), icc_profile=P3),
    "display-p3-palette.png": lambda: file_of(in_p3().quantize(16), icc_profile=P3),
    "adobe-rgb.jpeg": lambda: file_of(in_adobe_rgb(), "JPEG", icc_profile=ADOBE),
    "gamma-chunk.png": lambda: with_chunks(file_of(chart(_stored(_SRGB, 1.8))), _gamma(1.8)),
    "gamma-chunk-alpha.png": lambda: with_chunks(file_of(_with_alpha(chart(_stored(_SRGB, 1.0)))), _gamma(1.0)),
    "adobe-rgb-chunks.png": lambda: with_chunks(file_of(in_adobe_rgb()), _gamma(_ADOBE_GAMMA), _primaries(_ADOBE_XY)),
    "gamma-chunk-beside-profile.png": lambda: with_chunks(file_of(in_p3(), icc_profile=P3), _gamma(1.0)),
    "gamma-chunk-of-srgb.png": lambda: with_chunks(file_of(chart()), _gamma(2.2), (b"sRGB", b"\0")),
    "gamma-chunk-absurd.png": lambda: with_chunks(file_of(chart()), (b"gAMA", bytes(4))),
    "primaries-absurd.png": lambda: with_chunks(file_of(chart()), _gamma(1.8), _primaries((0.3,) * 7 + (0,))),
    "srgb.png": lambda: file_of(
        chart(), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "profile-damaged.jpeg": lambda: file_of(chart(), "JPEG", icc_profile=P3[:200]),
    "profile-no-profile.png": lambda: file_of(chart(), icc_profile=b"not a profile"),
    "profile-of-grey-on-colours.png": lambda: file_of(chart(), icc_profile=GREY_18),
    "exif-make-rational.jpeg": lambda: turned(exif((MAKE, RATIONAL, 1, struct.pack("<I", 38)), _TURNED_RIGHT)),
    "exif-make-short.jpeg": lambda: turned(exif((MAKE, SHORT, 2, b"\1\0\2\0"), _TURNED_RIGHT)),
    "exif-value-outside.jpeg": lambda: turned(exif((MAKE, ASCII, 90, struct.pack("<I", 10**6)), _TURNED_RIGHT)),
    "exif-big-endian.jpeg": lambda: turned(exif((ORIENTATION, SHORT, 1, b"\0\6"), order=">")),
    "exif-orientation-text.jpeg": lambda: file_of(chart(), "JPEG", exif=exif((ORIENTATION, ASCII, 3, b"6a"))),
    "exif-orientation-9.jpeg": lambda: file_of(chart(), "JPEG", exif=exif((ORIENTATION, SHORT, 1, b"\x09\0"))),
    "exif-cut-short.jpeg": lambda: file_of(chart(), "JPEG", exif=exif(_TURNED_RIGHT)[:16]),
    "exif-noise.webp": lambda: file_of(chart(), "WEBP", exif=b"Exif\0\0" + bytes(range(90))),
    "text-compressed.png": lambda: with_chunks(
        file_of(chart()), (b"zTXt", b"workflow\0\0" + zlib.compress(_workflow(2 * 2**20)))
    ),
    "text-international.png": lambda: with_chunks(
        file_of(chart()), (b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(_workflow(2 * 2**20)))
    ),
    "text-at-the-end.png": lambda: with_chunks(
        file_of(chart()), (b"zTXt", b"workflow\0\0" + zlib.compress(_workflow(2 * 2**20))), at_end=True
    ),
    "text-bomb.png": lambda: with_chunks(file_of(chart()), (b"zTXt", b"x\0\0" + zlib.compress(bytes(100 * 2**20), 9))),
    "text-damaged.png": lambda: with_chunks(file_of(chart()), (b"zTXt", b"x\0\0" + b"no zlib"), (b"iTXt", b"x")),
    "text-plain.png": lambda: with_chunks(file_of(chart()), *[(b"tEXt", b"note\0" + _workflow(2**20))] * 3),
}
"""Pictures that show the chart."""

LIKE_THE_GREY_CHART: dict[str, Callable[[], bytes]] = {
    "grey-1.8.png": lambda: file_of(_grey_18(_grey()), icc_profile=GREY_18),
    "grey-1.8.jpeg": lambda: file_of(_grey_18(_grey()), "JPEG", icc_profile=GREY_18),
    "grey-1.8-alpha.png": lambda: file_of(_with_alpha(_grey_18(_grey())), icc_profile=GREY_18),
    "grey-with-colour-profile.png": lambda: file_of(_grey(), icc_profile=P3),
}
"""Pictures that show the red of the chart's colours as grey."""


def write(folder: Path) -> None:
    """Write all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (LIKE_THE_CHART | LIKE_THE_GREY_CHART).items():
        (folder / name).write_bytes(make())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
