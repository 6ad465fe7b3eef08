"""The paths that this server answers, and what stands for each in metrics."""

from __future__ import annotations

ANIMATE = ("/animate", "/animate/stream")
_PATHS = frozenset({*ANIMATE, "/", "/livez", "/healthz", "/readyz", "/metrics", "/docs.json", "/schema.json", "/ui/"})


def is_ours(path: str) -> bool:
    """Whether anything answers there. Below `/ui/` the page's folder decides."""
    return path in _PATHS or path.startswith("/ui/")


def template_of(path: str) -> str:
    """Return what stands for a path in a metric's label: one of a dozen texts, whatever was asked for."""
    if path in _PATHS:
        return path
    return "/ui/{file}" if path.startswith("/ui/") else "other"


def without_slash(path: str) -> str | None:
    """Return where a path with one slash too many or too few leads, relative to it; None where that is nowhere.

    Relative, so that it holds behind a proxy that answers for another host or below another path.
    """
    if path == "/ui":
        return "ui/"
    known = path.removesuffix("/")
    if known not in ("", "/", path) and known in _PATHS:
        return f"../{known.rpartition('/')[2]}"
    return None
