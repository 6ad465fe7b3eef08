"""Pages for people, by templates over one base (`base.html.j2`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def rendered(template: Path, **values: Any) -> str:
    """Return the page that a template makes of values."""
    return _pages(template.parent).get_template(template.name).render(**values)


@cache
def _pages(folder: Path) -> Environment:
    loader = FileSystemLoader([folder, Path(__file__).parent])
    # Names and reasons come from elsewhere: all is escaped.
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
