"""Files of an earlier rendering that a later one does not write: `kubectl apply` would go on applying them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, RoutingError
from ..files import read_text, write_atomically

RECORD = ".rendered"
"""In the folder: a line `target path` for each file, seen from the folder. No suffix that kubectl would read."""


def remove_stale(out: Path, target: str, written: Iterable[Path]) -> list[Path]:
    """Remove what an earlier rendering of this target wrote and this one did not, and note what it wrote.

    Files that somebody else put there are never removed, nor those of other targets.

    Args:
        out: folder that was rendered into.
        target: of the rendering.
        written: its files.

    Returns:
        What was removed.

    Raises:
        RoutingError: a file cannot be removed, or the record not be written.
    """
    now = {path.resolve().relative_to(out.resolve()).as_posix() for path in written}
    known = _known(out)
    removed = []
    for name in sorted(known.get(target, set()) - now):
        path = out / name
        # A record that was tampered with points nowhere else.
        if not path.is_file() or path.is_symlink() or not path.resolve().is_relative_to(out.resolve()):
            continue
        try:
            path.unlink()
        except OSError as error:
            raise RoutingError(
                f"{path}: is of an earlier rendering and cannot be removed ({error.strerror})"
            ) from error
        removed.append(path)
        for folder in path.relative_to(out).parents:
            with contextlib.suppress(OSError):  # others have files there
                if folder != Path():
                    (out / folder).rmdir()
    lines = [f"{kind} {name}" for kind, names in (known | {target: now}).items() for name in sorted(names)]
    write_atomically(out / RECORD, "".join(f"{line}\n" for line in lines))
    return removed


def _known(out: Path) -> dict[str, set[str]]:
    """{target: files} of earlier renderings."""
    found: dict[str, set[str]] = {}
    with contextlib.suppress(InputError):  # none, or damaged: then nothing is removed
        for line in read_text(out / RECORD).splitlines():
            target, _, name = line.partition(" ")
            found.setdefault(target, set()).add(name)
    return found
