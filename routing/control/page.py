"""The status page, by its template `page.html.j2`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from .status import Status


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    # Names and reasons come from elsewhere: all is escaped.
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("page.html.j2")


def render(status: Status) -> str:
    """Return the page of a status."""
    return _template().render(status=status)
