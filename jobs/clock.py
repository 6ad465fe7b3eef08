"""The time that leases, quotas and expiry go by."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Gives seconds since 1970, as the database has them.

    Replicas whose own clocks differ would take each other's jobs for abandoned; all of them go by the database's.
    Between two looks at it this machine's monotonic clock counts, which nobody sets.

    Args:
        now: asks the database (`Store.now`).
        wall, monotonic: clocks of this machine.
    """

    def __init__(
        self,
        now: Callable[[], float],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._monotonic = now, monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        return self._monotonic() + self._offset

    def look(self) -> None:
        """Ask the database; blocks.

        Raises:
            StorageError: it does not answer. The clock goes on as it did.
        """
        before = self._monotonic()
        now = self._now()
        self._offset = now - (before + self._monotonic()) / 2
