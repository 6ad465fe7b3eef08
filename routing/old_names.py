"""Fleet files of the last release: keys that have another name now are read all the same, with a line that says so.

Each rule is kept for one release. A file that has both the old and the new key is refused where it is checked, since
the old one stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

_RENAMED: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    # Old key, new key, what becomes of its value. `*` is any name, or any number of a list.
    ("data_plane.limits.job_s", "jobs.deadline_s", lambda value: value),
    ("data_plane.limits.body_mb", "jobs.body_limit", lambda value: f"{value}MiB"),
    ("data_plane.mutual_tls.ingress_name", "data_plane.mutual_tls.dispatcher_name", lambda value: value),
    ("data_plane.places.*.ingresses", "data_plane.places.*.dispatchers", lambda value: value),
    ("data_plane.places.*.dispatchers.*.metrics", "data_plane.places.*.dispatchers.*.admin", lambda value: value),
)
_REMOVED: tuple[tuple[str, str], ...] = (
    ("floor_share", "the table has no shares for retries, which go by the rings"),
    ("metrics.load", "load is what dispatchers count, jobs in service and served"),
    ("metrics.pages.*.gpu_servers", "pages of dispatchers are read in their place; give `dispatchers`"),
)
"""Keys that nothing takes the place of, each with the reason."""

_REPLACED = {"data_plane.places.*.dispatchers.*.metrics"}  # what the new key holds in an old file is no longer needed


def in_todays_names(content: object) -> tuple[object, list[str]]:
    """Return the content of a fleet file with today's keys, and what to change in the file, line by line."""
    changes: list[str] = []
    if not isinstance(content, dict):
        return content, changes
    content = deepcopy(content)
    for old, new, convert in _RENAMED:
        for path in list(_found(content, old.split("."))):
            target = _filled(new, path)
            parent, into = _parent(content, path), _parent(content, target, make=True)
            if into is None or (target[-1] in into and old not in _REPLACED):
                continue
            into[target[-1]] = convert(parent[path[-1]])
            del parent[path[-1]]
            changes.append(f"{_text(path)} is called {_text(target)} now; it will not be read in the next release")
    for old, why in _REMOVED:
        for path in list(_found(content, old.split("."))):
            del _parent(content, path)[path[-1]]
            changes.append(f"{_text(path)} has no effect any more: {why}; remove it")
    return content, changes


def _found(content: Any, keys: list[str], before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each path in the content that the keys stand for."""
    if not keys:
        yield before
        return
    if isinstance(content, dict):
        names = list(content) if keys[0] == "*" else [keys[0]] if keys[0] in content else []
    elif isinstance(content, list) and keys[0] == "*":
        names = list(range(len(content)))
    else:
        names = []
    for name in names:
        yield from _found(content[name], keys[1:], (*before, name))


def _filled(keys: str, path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put the names of a path in place of the `*` of a key."""
    return tuple(path[i] if key == "*" else key for i, key in enumerate(keys.split(".")))


def _parent(content: Any, path: tuple[Any, ...], *, make: bool = False) -> Any:
    for name in path[:-1]:
        if make and isinstance(content, dict):
            content.setdefault(name, {})
        if not isinstance(content, dict | list):
            return None
        content = content[name]
    return content if isinstance(content, dict | list) else None


def _text(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
