"""Kinds of files that a clip is written to. Needs nothing that is slow to import."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["mp4", "webm", "webp", "gif"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "mp4": "video/mp4",
    "webm": "video/webm",
    "webp": "image/webp",
    "gif": "image/gif",
}
