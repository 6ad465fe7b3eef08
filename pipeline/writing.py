"""Files and folders that are whole or not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import StillmotionError


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder beside its place and rename it, so that a full disk leaves what was there.

    Args:
        write: called with the place to write to.

    Raises:
        StillmotionError: it cannot be written.
    """
    from safetensors import SafetensorError

    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        write(partial)
        if path.is_dir():
            _remove(path)
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch has no kind of its own for a full disk
        with contextlib.suppress(OSError):  # the first reason is the one to tell
            _remove(partial)
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise StillmotionError(f"{path}: cannot be written ({reason})") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text beside its place and rename it, so that a reader or an interrupt never meets half a file.

    Raises:
        StillmotionError: it cannot be written.
    """
    write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))
