"""The slot: at most one request is admitted at a time, and it stays so until its computation has truly ended.

A ticket is what an admitted request holds::

    ADMITTED --begin--> COMPUTING --computed--> COMPUTED --leave--> CLOSED
        |                   |
      leave               leave (the request ended first)
        v                   v
      CLOSED            ORPHANED --computed--> CLOSED

The slot is taken in ADMITTED, COMPUTING and ORPHANED. Encoding and sending a finished clip (COMPUTED) does not take
it: neither an encoder nor a client that reads slowly must keep the GPU idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from pipeline.errors import Cancelled


class Phase(StrEnum):
    """Where a ticket is; see the picture above."""

    ADMITTED = "admitted"
    COMPUTING = "computing"
    COMPUTED = "computed"
    ORPHANED = "orphaned"
    CLOSED = "closed"


HOLDING = frozenset({Phase.ADMITTED, Phase.COMPUTING, Phase.ORPHANED})


class Slot:
    """Hands out one ticket at a time. All methods may be called from any thread.

    Args:
        clock: seconds, monotonic.
        on_change: told of the load (0 or 1) each time it changes, under the lock: it must be quick. Where it raises,
            the caller of the slot gets its error, and the slot is free.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, on_change: Callable[[int], None] | None = None
    ) -> None:
        self._clock, self._on_change = clock, on_change
        self._condition = threading.Condition()
        self._holder: Ticket | None = None
        self._busy_s, self._counted_at = 0.0, 0.0

    @property
    def load(self) -> int:
        """Requests queued or in flight: 0 or 1."""
        return int(self._holder is not None)

    @property
    def holder(self) -> Ticket | None:
        return self._holder

    def admit(self) -> Ticket | None:
        """A ticket, or None while another one holds the slot."""
        with self._condition:
            if self._holder is not None:
                return None
            self._holder = ticket = Ticket(self, self._condition)
            self._counted_at = self._clock()
            try:
                self._changed()
            except BaseException:
                self._holder = None  # nobody has the ticket that would free it
                raise
            return ticket

    def busy_s(self) -> float:
        """Seconds that the slot has been taken since the start, the present holder's included."""
        with self._condition:
            self._count()
            return self._busy_s

    def wait_until_free(self, timeout_s: float | None = None) -> bool:
        """Block until nothing is in flight; whether that happened in time."""
        with self._condition:
            return self._condition.wait_for(lambda: self._holder is None, timeout_s)

    def _count(self) -> None:
        if self._holder is not None:
            now = self._clock()
            self._busy_s += now - self._counted_at
            self._counted_at = now

    def release(self, ticket: Ticket) -> None:
        """For tickets only, which call it under the lock that they share with the slot."""
        if self._holder is not ticket:
            raise RuntimeError("the slot is not held by this ticket")
        self._count()
        self._holder = None
        self._condition.notify_all()
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self.load)


class Ticket:
    """One admitted request. Made by `Slot.admit`.

    Attributes:
        phase: where it is; see the module's picture.
        reason: why it was cancelled, or None.
    """

    def __init__(self, slot: Slot, lock: threading.Condition) -> None:
        self._slot, self._lock = slot, lock
        self.phase = Phase.ADMITTED
        self.reason: str | None = None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Hold the slot for as long as the block computes, and free it however the block ends.

        Raises:
            Cancelled: nobody waits for it any more; nothing must be computed.
        """
        self.begin()
        try:
            yield
        finally:
            self.computed()

    def begin(self) -> None:
        """The computation starts, in its thread; see `computing`.

        Raises:
            Cancelled: nobody waits for it any more; nothing must be computed.
        """
        with self._lock:
            if self.phase is not Phase.ADMITTED:
                raise Cancelled(self.reason or "the request has ended")
            if self.reason is not None:
                raise Cancelled(self.reason)
            self.phase = Phase.COMPUTING

    def check(self) -> None:
        """Called between two steps.

        Raises:
            Cancelled: the computation is to stop here.
        """
        if self.reason is not None:
            raise Cancelled(self.reason)

    def cancel(self, reason: str) -> None:
        """Ask the computation to stop at its next step; the first reason stays."""
        with self._lock:
            if self.reason is None:
                self.reason = reason

    def computed(self) -> None:
        """The computation has ended, well or not: nothing of it runs any more. Frees the slot."""
        with self._lock:
            if self.phase is Phase.COMPUTING:
                self.phase = Phase.COMPUTED
            elif self.phase is Phase.ORPHANED:
                self.phase = Phase.CLOSED
            else:
                raise RuntimeError(f"a ticket that is {self.phase} cannot be computed")
            self._slot.release(self)

    def leave(self) -> None:
        """The request has ended. Frees the slot, unless a computation still runs: then that is asked to stop."""
        with self._lock:
            if self.phase is Phase.ADMITTED:
                self.phase = Phase.CLOSED
                self._slot.release(self)
            elif self.phase is Phase.COMPUTING:
                self.phase = Phase.ORPHANED
                self.reason = self.reason or "the request has ended"
            elif self.phase is Phase.COMPUTED:
                self.phase = Phase.CLOSED
