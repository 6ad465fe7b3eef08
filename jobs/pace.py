"""How many jobs are sent at a time: as many as there is room for upstream, found by what becomes of each.

A job that was sent and has not begun waits upstream. Few may do so: they would stand in the way of those who ask the
edge directly, and here they are kept in order. So the number of those that wait is bounded, not of those that compute:
each job that begins at once raises the bound by one, up to what a fleet takes in quickly; a refusal, or a long wait,
brings it back to one.
"""

from __future__ import annotations

import random

_AT_ONCE_S = 1.0
_MOST_WAITING = 32
_BUSY_S = 5.0  # so that a page does not say and unsay it with each job


class Pace:
    """Decides how many more jobs may be sent. Times are monotonic seconds.

    Args:
        most: jobs that may be sent at a time.
        rng: spreads the next attempt after a refusal, so that several processes do not come at once.
    """

    def __init__(self, most: int, rng: random.Random | None = None) -> None:
        self._most, self._rng = most, rng or random.Random()  # noqa: S311  # guards nothing
        self._bound = 1
        self._held_until, self._busy_until = 0.0, 0.0
        self.waiting = 0
        self.computing = 0

    @property
    def in_flight(self) -> int:
        return self.waiting + self.computing

    def room(self, now: float, *, batch: bool) -> bool:
        """Whether one more job may be sent.

        Batch jobs take what is left: one at a time may wait upstream, and not beside an interactive one.
        """
        if now < self._held_until or self.in_flight >= self._most:
            return False
        return self.waiting < (1 if batch else self._bound)

    def held_s(self, now: float) -> float:
        """Seconds until a job may be sent again after a refusal."""
        return max(0.0, self._held_until - now)

    def busy(self, now: float) -> bool:
        """Whether there was no room a moment ago."""
        return now < self._busy_until

    def sent(self) -> None:
        self.waiting += 1

    def began(self, waited_s: float) -> None:
        """A job that was sent computes now."""
        self.waiting -= 1
        self.computing += 1
        self._bound = min(self._bound + 1, _MOST_WAITING) if waited_s < _AT_ONCE_S else 1

    def ended(self, *, began: bool) -> None:
        """A job is no longer in flight; where it computed, there is room for another one."""
        if began:
            self.computing -= 1
            self._held_until = 0.0
        else:
            self.waiting -= 1

    def refused(self, now: float, wait_s: float) -> None:
        """There was no room: no more is sent until one of ours ends, or until the upstream said."""
        self._bound = 1
        self._held_until = max(self._held_until, now + wait_s * self._rng.uniform(1.0, 1.25))
        self._busy_until = max(self._held_until, now + _BUSY_S)
