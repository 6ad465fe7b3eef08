"""Counters to growth: between two readings, whatever their distance, and never across a restart."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

SHORTEST_S = 0.05
"""Readings that are nearer say nothing of a rate: reading takes some milliseconds itself."""


@dataclass(frozen=True)
class Growth:
    """What a counter gained.

    Attributes:
        amount: 0 or more, but for `Counters.change`.
        seconds: time in which it did; above 0.
    """

    amount: float
    seconds: float

    @property
    def per_s(self) -> float:
        return self.amount / self.seconds


@dataclass
class Counters:
    """The counters of one machine.

    Times are monotonic, in seconds; when a clock is set, no rate changes. A counter that falls has started anew:
    what it gained meanwhile cannot be known, so that it gives no growth this once.
    """

    _last: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def growth(self, name: Hashable, at: float, value: float) -> Growth | None:
        """Growth since the last reading; None for the first, after a reset, and for readings too near.

        Args:
            name: of the counter.
            at: when it was read.
            value: as read.
        """
        change = self.change(name, at, value)
        return change if change is not None and change.amount >= 0 else None

    def change(self, name: Hashable, at: float, value: float) -> Growth | None:
        """As `growth`, for what may fall as well: then the amount is negative."""
        before = self._last.get(name)
        if before is not None and 0 <= at - before[0] < SHORTEST_S:
            return None
        self._last[name] = (at, value)
        if before is None or at < before[0]:
            return None
        return Growth(value - before[1], at - before[0])

    def fell(self, name: Hashable, value: float) -> bool:
        """Whether a value is below the last reading."""
        before = self._last.get(name)
        return before is not None and value < before[1]

    def forget(self) -> None:
        """Start anew with each counter, as after a restart of the machine."""
        self._last.clear()
