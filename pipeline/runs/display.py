"""Tables and playable clips for notebooks and pages, without anything from outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from .results import Row

_MEDIA_TYPES = {
    ".webm": "video/webm",
    ".mp4": "video/mp4",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}


class Html:
    """HTML that a notebook shows as the value of a cell."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


def data_uri(path: Path) -> str:
    """A file as text that stands in a page."""
    return f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def is_video(path: Path) -> bool:
    """Whether a browser plays it in `<video>` (the other formats are animated pictures)."""
    return _MEDIA_TYPES[path.suffix].startswith("video/")


def player(path: Path, width: int = 192) -> str:
    """HTML that plays a clip in a loop."""
    if is_video(path):
        attributes = "autoplay loop muted playsinline controls"
        return f'<video {attributes} width="{width}" src="{data_uri(path)}"></video>'
    return f'<img width="{width}" src="{data_uri(path)}">'


def show_clips(clips: Sequence[tuple[str, Path]], width: int = 192) -> Html:
    """Clips side by side, each under its caption."""
    cells = "".join(
        f'<figure style="margin:0;width:{width}px">{player(path, width)}'
        f'<figcaption style="font-size:90%">{html.escape(caption)}</figcaption></figure>'
        for caption, path in clips
    )
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:16px">{cells}</div>')


def show_rows(rows: Sequence[Row]) -> Html:
    """A table of figures."""
    lines = "".join(
        f'<tr><td style="text-align:left">{html.escape(row.name)}</td>'
        f'<td style="text-align:right"><b>{html.escape(row.shown)}</b></td>'
        f'<td style="text-align:left">{html.escape(row.note)}</td></tr>'
        for row in rows
    )
    return Html(f"<table>{lines}</table>")
