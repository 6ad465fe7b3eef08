"""Interrupts that wait for the end of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Notes an interrupt (Ctrl-C) or a request to end (SIGTERM) inside a `with` block, and raises nothing.

    An update that is broken off leaves some weights old and some new. The second request no longer
    waits: it raises `KeyboardInterrupt` at once. Outside the main thread signals cannot be caught, and
    nothing is changed.

    Attributes:
        asked: whether there has been one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # None is a handler that is not Python's, and cannot be put back; one that ignores is meant.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
