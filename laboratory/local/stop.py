"""Ending a fleet: its supervisor, and whatever else of it is left."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from routing.errors import RoutingError

from .components import LOCK, STATE, read_state, read_wanted
from .processes import Process, kill, marked

_BEGIN_S = 60.0


def down(folder: Path) -> int:
    """End a fleet; how many processes there were.

    Raises:
        RoutingError: some cannot be ended.
    """
    folder = folder.resolve()
    count = len({one.pid for one in [*_known(folder), *marked(folder)] if one.alive})
    state = _state(folder)
    if state is not None:
        kill([state], gently_s=_longest_s(folder))
    left = remove_leftovers(folder)
    return max(count, left)


def remove_leftovers(folder: Path) -> int:
    """End what an earlier fleet of this folder has left, if anything; how many processes that were.

    Raises:
        RoutingError: some cannot be ended.
    """
    found = {one.pid: one for one in [*_known(folder), *marked(folder)]}
    count = kill(found.values())
    if stubborn := [one for one in [*found.values(), *marked(folder)] if one.alive]:
        text = ", ".join(str(one.pid) for one in stubborn)
        raise RoutingError(f"these processes of the fleet do not end: {text}")
    (folder / STATE).unlink(missing_ok=True)
    return count


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


def _known(folder: Path) -> list[Process]:
    """Processes of the state file."""
    state = read_state(folder)
    if state is None:
        return []
    found = [Process(state.pid, state.started)]
    found += [Process(one.pid, one.started) for one in state.components if one.pid is not None and one.started]
    return found


def _state(folder: Path) -> Process | None:
    """The supervisor; one that is just starting has a little time to say so."""
    end = time.monotonic() + _BEGIN_S
    while True:
        state = read_state(folder)
        if state is not None:
            return Process(state.pid, state.started)
        if not runs(folder) or time.monotonic() > end:
            return None
        time.sleep(0.05)


def _longest_s(folder: Path) -> float:
    """Time that a supervisor may take: each stage in turn, and a little for itself."""
    try:
        components = read_wanted(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return 60.0
    longest: dict[int, float] = {}
    for one in components:
        longest[one.stage] = max(longest.get(one.stage, 0.0), one.stop_s)
    return sum(longest.values()) + 30.0
