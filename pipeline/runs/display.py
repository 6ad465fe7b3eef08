"""Tables and playable clips for notebooks and pages, without anything from outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..media.formats import MEDIA_TYPES
from .results import Row

_KINDS = {".png": "image/png", **{f".{name}": kind for name, kind in MEDIA_TYPES.items()}}


@dataclass(frozen=True, repr=False)
class Html:
    """HTML that a notebook shows as the value of a cell."""

    text: str

    def _repr_html_(self) -> str:
        return self.text


def data_uri(path: Path) -> str:
    """Return a file as text that stands in a page."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def is_video(path: Path | str) -> bool:
    """Return whether a browser plays it in `<video>` (the other formats are animated pictures)."""
    return _KINDS[Path(path).suffix].startswith("video/")


def show_clips(clips: Sequence[tuple[str, Path]], width: int = 192) -> Html:
    """Show clips side by side, each in a loop above its caption."""
    cells = []
    for caption, path in clips:
        tag = "video autoplay loop muted playsinline controls" if is_video(path) else "img"
        cells.append(
            f'<figure style="margin:0;width:{width}px"><{tag} width="{width}" src="{data_uri(path)}">'
            f'{"</video>" if is_video(path) else ""}<figcaption style="font-size:90%">{html.escape(caption)}'
            "</figcaption></figure>"
        )
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:16px">{"".join(cells)}</div>')


def show_rows(rows: Sequence[Row]) -> Html:
    """Show a table of figures."""
    lines = "".join(
        f'<tr><td style="text-align:left">{html.escape(row.name)}</td>'
        f'<td style="text-align:right"><b>{html.escape(row.shown)}</b></td>'
        f'<td style="text-align:left">{html.escape(row.note)}</td></tr>'
        for row in rows
    )
    return Html(f"<table>{lines}</table>")
