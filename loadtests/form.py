"""What each request sends: a form with a picture and a prompt, whose bytes are made once."""

from __future__ import annotations

import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from routing.errors import InputError

PROMPT = "a red circle moves to the right"
_LARGEST = 16 * 2**20  # bytes; what the service takes
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
_SIDE = 64
_FILLER = b"paDd"  # by its letters' cases: may be passed over, is nobody's standard, and may be copied


@dataclass(frozen=True)
class Form:
    """A request's body.

    Attributes:
        body: bytes.
        content_type: with the boundary that is in them.
        end: where a PNG's last chunk begins in the body; None: it has no PNG.
    """

    body: bytes
    content_type: str
    end: int | None = None

    def sized(self, size: int) -> bytes:
        """Return the body, or one of so many bytes: the PNG has a chunk more, which programs pass over."""
        more = size - len(self.body) - len(_chunk(_FILLER, b""))
        if self.end is None or more < 0:
            return self.body
        return self.body[: self.end] + _chunk(_FILLER, bytes(more)) + self.body[self.end :]


def make_form(image: Path | None, prompt: str = PROMPT) -> Form:
    """A form of a picture and a prompt.

    Args:
        image: PNG, JPEG or WebP file; None: a small PNG, which real servers can animate.
        prompt: what is to happen.

    Raises:
        InputError: the picture cannot be read, is too large or none.
    """
    content = circle() if image is None else _read(image)
    kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)
    if kind is None:
        raise InputError("is no PNG, JPEG or WebP picture", file=str(image))
    if not prompt.strip():
        raise InputError("--prompt: is empty")
    boundary = f"stillmotion-{secrets.token_hex(12)}"
    parts = (
        ('name="image"; filename="picture"', f"image/{kind}", content),
        ('name="prompt"', "text/plain; charset=utf-8", prompt.encode()),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {media}\r\n\r\n".encode()
        + value
        + b"\r\n"
        for name, media, value in parts
    )
    body += f"--{boundary}--\r\n".encode()
    last = _chunk(b"IEND", b"")
    end = body.rindex(last) if kind == "png" and last in body else None
    return Form(body, f"multipart/form-data; boundary={boundary}", end)


def circle() -> bytes:
    """A PNG of 64 x 64 pixels: a red circle on a light ground."""
    rows = b"".join(
        b"\0"
        + b"".join(
            b"\xd0\x30\x30" if (x - 31.5) ** 2 + (y - 31.5) ** 2 < 15**2 else b"\xe8\xec\xf0" for x in range(_SIDE)
        )
        for y in range(_SIDE)
    )

    head = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"has more than {_LARGEST // 2**20} MiB, which the service takes", file=str(path))
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
