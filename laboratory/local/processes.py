"""Processes of a fleet: started so that none outlives it, found by a mark in their environment, and ended."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from routing.errors import RoutingError

from .records import LOCK, STATE, read_state, read_wanted

MARK = "STILLMOTION_FLEET"
"""In the environment of each process of a fleet: the folder that it runs in. Whatever they start has it as well, and a
process of somebody else that was given a process id of ours has not."""

_BEGIN_S = 60.0
_GONE_S = 60.0  # the kernel ends a killed process at once, but for one that waits for a disk
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that ended and is not waited for yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def of_fleet(pid: int | None, folder: Path) -> psutil.Process | None:
    """Return the process of this id if it runs and is of the fleet of this folder."""
    if pid is None:
        return None
    try:
        found = psutil.Process(pid)
        return found if alive(found) and found.environ().get(MARK) == str(folder) else None
    except psutil.Error:
        return None


def marked(folder: Path) -> list[psutil.Process]:
    """Return all processes with the mark of a fleet's folder, but for this one."""
    found = (of_fleet(pid, folder) for pid in psutil.pids() if pid != os.getpid())
    return [one for one in found if one is not None]


def spawn(
    command: Sequence[str], log: BinaryIO, environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that is killed when this one ends, however that happens.

    To be called in the main thread, since it is that thread's end that kills it. It leads a group of its own, for
    what it starts itself. Elsewhere than on Linux it stays when this process is killed: `down` finds it then.

    Args:
        command: program and arguments.
        log: takes what it prints.
        environment: all of its environment.
        folder: where it runs; None: where this process does.
    """
    return subprocess.Popen(  # noqa: S603  # the commands are ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        preexec_fn=_tie(os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509  # there are no other threads
    )


def _tie(parent: int) -> Callable[[], None]:
    # Looked up before the fork: a child should do as little as it can.
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return tie


def kill(processes: Iterable[psutil.Process], *, gently_s: float = 0.0) -> int:
    """End processes and their groups; how many there were.

    Args:
        processes: those that have ended are left alone.
        gently_s: so long they may take after SIGTERM.
    """
    found = [one for one in processes if alive(one)]
    if gently_s > 0:
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.terminate()
        _wait(found, gently_s)
    for one in filter(alive, found):
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(one.pid) == one.pid:
                os.killpg(one.pid, signal.SIGKILL)
            else:
                one.kill()
    _wait(found, _GONE_S)
    return len(found)


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    # Not by `psutil.wait_procs`, which would take the exit status of children from whoever started them.
    end = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.02)


def runs(folder: Path) -> bool:
    """Whether a fleet runs in a folder."""
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def down(folder: Path) -> int:
    """End a fleet; how many processes there were.

    Raises:
        RoutingError: some cannot be ended.
    """
    folder = folder.resolve()
    count = len(marked(folder))
    if (supervisor := _supervisor(folder)) is not None:
        kill([supervisor], gently_s=_longest_s(folder))
    return max(count, remove_leftovers(folder))


def remove_leftovers(folder: Path) -> int:
    """End what an earlier fleet of this folder has left, if anything; how many processes that were.

    Raises:
        RoutingError: some cannot be ended.
    """
    count = kill(marked(folder))
    if stubborn := marked(folder):
        text = ", ".join(str(one.pid) for one in stubborn)
        raise RoutingError(f"these processes of the fleet do not end: {text}")
    (folder / STATE).unlink(missing_ok=True)
    return count


def _supervisor(folder: Path) -> psutil.Process | None:
    """The supervisor; one that is just starting has a little time to say so."""
    end = time.monotonic() + _BEGIN_S
    while (state := read_state(folder)) is None:
        if not runs(folder) or time.monotonic() > end:
            return None
        time.sleep(0.05)
    return of_fleet(state.pid, folder)


def _longest_s(folder: Path) -> float:
    """Time that a supervisor may take: each stage in turn, and a little for itself."""
    try:
        components = read_wanted(folder)
    except (OSError, ValueError):
        return 60.0
    longest: dict[int, float] = {}
    for one in components:
        longest[one.stage] = max(longest.get(one.stage, 0.0), one.stop_s)
    return sum(longest.values()) + 30.0
