"""A folder that one process at a time works in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import StillmotionError

LOCK_FILE = ".lock"


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while the block runs; the system lets go of it when the process ends, however it ends.

    Args:
        what: kind of work in the folder, for the error.

    Raises:
        StillmotionError: another process holds the folder, or it cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
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
