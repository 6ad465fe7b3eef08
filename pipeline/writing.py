"""Files and folders that are whole or not there, and a folder that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import StillmotionError, first_line

LOCK_FILE = ".lock"


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
        reason = getattr(error, "strerror", None) or first_line(error)
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


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while the block runs; the system lets go of it when the process ends, however it ends.

    Args:
        what: kind of work in the folder, for the error.

    Raises:
        StillmotionError: another process holds the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise StillmotionError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StillmotionError(
                f"{folder}: another process is at work on this {what}; wait for it to end, or end it, and try again"
            ) from error
        except OSError:
            pass  # a file system without locks; then it is up to the person
        yield
