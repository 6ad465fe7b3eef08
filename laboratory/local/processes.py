"""Processes of a fleet: started so that none outlives it, and found again without ever mistaking another for one.

A process id is used again by the system some day. So it is always kept with the moment at which the process
started, which no other process with this id can have.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MARK = "STILLMOTION_FLEET"
"""In the environment of each process of a fleet: the folder that it runs in. Whatever they start has it as well."""

_GONE_S = 60.0  # the kernel ends a killed process at once, but for one that waits for a disk
_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Process:
    """One process, for good.

    Attributes:
        pid: its id, which is also the id of its process group.
        started: when, in the system's own words.
    """

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that ended and is not waited for yet does not."""
        return started(self.pid) == self.started


def started(pid: int) -> str | None:
    """When a process started; None when there is none, or it has ended."""
    if _LINUX:
        return _started_by_proc(pid)
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed but for a number
    state, _, moment = done.stdout.strip().partition(" ")
    return None if done.returncode or state.startswith("Z") else moment.strip()


def _started_by_proc(pid: int) -> str | None:
    try:
        # The name in parentheses may have anything in it; fields are counted from behind it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else f"{boot[:8]}:{fields[19]}"


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
        preexec_fn=_tie(os.getpid()) if _LINUX else None,  # noqa: PLW1509  # there are no other threads
    )


def _tie(parent: int) -> Callable[[], None]:
    # Looked up before the fork: a child should do as little as it can.
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return tie


def marked(folder: Path) -> list[Process]:
    """All processes with the mark of a fleet's folder, but for this one. Linux only; elsewhere none is found."""
    wanted = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*") if _LINUX else ():
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            since = started(pid)  # before and after: the id may be another's by then
            if pid != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0") and since is not None:
                one = Process(pid, since)
                if one.alive:
                    found.append(one)
    return found


def kill(processes: Iterable[Process], *, gently_s: float = 0.0) -> int:
    """End processes and their groups; how many there were.

    Args:
        processes: those that have ended, or whose id is another's now, are left alone.
        gently_s: so long they may take after SIGTERM.
    """
    alive = [one for one in processes if one.alive]
    count = len(alive)
    if gently_s > 0:
        for one in alive:
            _signal(one, signal.SIGTERM)
        end = time.monotonic() + gently_s
        while alive and time.monotonic() < end:
            time.sleep(0.02)
            alive = [one for one in alive if one.alive]
    for one in alive:
        _signal(one, signal.SIGKILL)
    end = time.monotonic() + _GONE_S
    while any(one.alive for one in alive) and time.monotonic() < end:
        time.sleep(0.01)
    return count


def _signal(one: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not one.alive:
            return
        if os.getpgid(one.pid) == one.pid and number == signal.SIGKILL:
            os.killpg(one.pid, number)
        else:
            os.kill(one.pid, number)
