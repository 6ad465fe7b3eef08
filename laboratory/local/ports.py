"""Ports of a fleet: in a row, free, and not promised to another fleet of this machine that is just starting."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from routing.data_plane import LAST_PORT
from routing.errors import RoutingError

FIRST_PORT = 21_000
_STEP = 50


@dataclass(frozen=True)
class Reservation:
    """Ports that are ours for as long as the file is open, here or in a process that was given it.

    Attributes:
        first, count: of the ports.
        file: descriptor of the locked file.
    """

    first: int
    count: int
    file: int

    def release(self) -> None:
        """Give them up."""
        os.close(self.file)


def reserve(count: int, base: int | None = None, folder: Path | None = None) -> Reservation:
    """Reserve ports on loopback.

    Args:
        count: how many, in a row.
        base: the first of them; None: the first that fit, from 21000 on.
        folder: where reservations are kept; None: one of this user, for the whole machine.

    Raises:
        RoutingError: a port is taken, or there are not so many.
    """
    home = _home() if folder is None else folder
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(home):
        taken = [*_reserved(home)]
        starts = range(FIRST_PORT, LAST_PORT + 2 - count, _STEP) if base is None else [base]
        for first in starts:
            if base is None and any(first < end and first + count > start for start, end in taken):
                continue
            problem = _problem(first, count, taken)
            if problem is None:
                return Reservation(first, count, _lock(home / f"{first}-{first + count}.ports"))
            if base is not None:
                raise RoutingError(f"{problem}; choose another --port-base, or leave it out")
    raise RoutingError(f"no {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}; give --port-base")


def _home() -> Path:
    return Path(tempfile.gettempdir()) / f"stillmotion-ports-{os.getuid()}"


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time looks and reserves."""
    with (home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reserved(home: Path) -> Iterator[tuple[int, int]]:
    """First port, and the one after the last, of each reservation. Those that nobody holds any more are removed."""
    for path in home.glob("*.ports"):
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            first, _, end = path.stem.partition("-")
            yield int(first), int(end)
        finally:
            os.close(file)


def _lock(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _problem(first: int, count: int, taken: list[tuple[int, int]]) -> str | None:
    if first < 1024 or first + count - 1 > LAST_PORT:
        return f"ports {first} to {first + count - 1} are not all between 1024 and {LAST_PORT}"
    for port in range(first, first + count):
        if any(start <= port < end for start, end in taken):
            return f"port {port} is another fleet's"
        # By listening, not by connecting: what is bound and does not answer is taken as well.
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
                one.listen()
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                return f"port {port} {why}"
    return None
