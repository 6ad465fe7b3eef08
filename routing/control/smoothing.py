"""Smoothing: estimates that follow what is measured, and shares that follow what is planned in bounded steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import exp

Row = Mapping[str, float]
"""Shares of one source's requests, by destination; they sum to 1. Shares of 0 are left out, but for home."""
Shares = Mapping[str, Row]

EPSILON = 1e-9
"""Shares below it are rounding, not traffic."""


@dataclass(frozen=True)
class Estimate:
    """A smoothed value.

    What was known fades with exp(-t / tau); a measurement that covers dt seconds weighs 1 - exp(-dt / tau). So
    two measurements of dt are worth one of 2 dt. At first, while little is known, the value is the plain mean
    of what was measured: otherwise the very first measurement would count for as long as tau.

    Attributes:
        value: smoothed.
        at: monotonic seconds of the last measurement.
        weight: of all that was measured, 0 to 1: 1 - exp(-t / tau) after t seconds without a gap.
    """

    value: float
    at: float
    weight: float

    @classmethod
    def first(cls, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """Of one measurement, which covers so many seconds."""
        return cls(value, at, _part(seconds, tau_s))

    def followed(self, value: float, at: float, seconds: float, tau_s: float) -> Estimate:
        """After one more measurement.

        Args:
            value: measured.
            at: when; before the last one it changes nothing.
            seconds: that it covers.
            tau_s: time constant.
        """
        part = _part(seconds, tau_s)
        if at <= self.at or part <= 0:
            return self
        kept = self.weight * (1.0 - _part(at - self.at, tau_s))
        weight = kept + part
        return Estimate((kept * self.value + part * value) / weight, at, min(weight, 1.0))

    def rising_slowly(self, value: float, at: float, tau_s: float) -> Estimate:
        """As `followed`, but at once for what falls: capacity that is gone is gone, and that comes back may go
        again.
        """
        if value < self.value:
            return Estimate(value, max(at, self.at), 1.0)
        return Estimate(self.value, self.at, 1.0).followed(value, at, at - self.at, tau_s)


def _part(seconds: float, tau_s: float) -> float:
    return 1.0 - exp(-max(0.0, seconds) / tau_s)


def largest_change(row: Row, target: Row) -> float:
    """The share that differs most."""
    return max((abs(target.get(to, 0.0) - row.get(to, 0.0)) for to in {**row, **target}), default=0.0)


def step(rows: Shares, targets: Shares, max_step: float) -> tuple[float, dict[str, dict[str, float]]]:
    """Go towards the targets, with no share changed by more than `max_step`.

    All rows go the same part of their way. So each region's load goes straight from what it is to what is
    planned, and on the way no region has more than at the worse end: were each row to go as fast as it may, a
    region could be given new overflow before it is rid of the old.

    Args:
        rows: as they are, each of which sums to 1.
        targets: for some or all of them, likewise.
        max_step: above 0.

    Returns:
        The part of the way that is gone, 0 to 1, and all rows. After ceil(largest change / max_step) steps they
        are the targets.
    """
    farthest = max((largest_change(rows[source], target) for source, target in targets.items()), default=0.0)
    part = min(1.0, max_step / farthest) if farthest > 0 else 1.0
    after = {source: dict(row) for source, row in rows.items()}
    for source, target in targets.items():
        after[source] = _between(source, rows[source], target, part)
    return part, after


def _between(home: str, row: Row, target: Row, part: float) -> dict[str, float]:
    if part >= 1.0:
        return dict(target)
    mixed = {to: row.get(to, 0.0) + part * (target.get(to, 0.0) - row.get(to, 0.0)) for to in {**row, **target}}
    kept = {to: max(share, 0.0) for to, share in mixed.items() if share > EPSILON or to == home}
    total = sum(kept.values())
    return {to: share / total for to, share in kept.items()}


def no_more_than_now(row: Row, target: Row, regions: frozenset[str], home: str) -> dict[str, float]:
    """The target, but with no more than now for some regions; what they do not get stays at home.

    Args:
        row: as it is.
        target: as planned.
        regions: that get no more; `home` always may.
        home: the row's own region.
    """
    found = dict(target)
    for to in regions - {home}:
        surplus = found.get(to, 0.0) - row.get(to, 0.0)
        if surplus > 0:
            found[to] -= surplus
            found[home] = found.get(home, 0.0) + surplus
    return {to: share for to, share in found.items() if share > EPSILON or to == home}


ROUND_TRIPS_KEPT = 5
"""Reports of a round trip whose median counts: one that met a busy machine moves nothing."""
ROUND_TRIP_OFF, ROUND_TRIP_OFF_MS = 0.1, 2.0
"""A round trip in use is replaced where the measured one is off by more than both, so that noise at the edge of a ring
moves no traffic."""


@dataclass
class RoundTrips:
    """Round trips that agents have measured, in place of those of the fleet file.

    Attributes:
        given: round trip of the fleet file, in ms, from source to destination.
        used: {source: {destination: ms}}, only where they differ from the given ones by enough.
    """

    given: Callable[[str, str], float]
    used: dict[str, dict[str, float]] = field(default_factory=dict)
    _recent: dict[tuple[str, str], deque[float]] = field(default_factory=dict)

    def take(self, source: str, measured_ms: Mapping[str, float]) -> bool:
        """Take a report of one source; return whether a round trip in use has changed."""
        changed = False
        for to, ms in measured_ms.items():
            recent = self._recent.setdefault((source, to), deque(maxlen=ROUND_TRIPS_KEPT))
            recent.append(ms)
            middle = sorted(recent)[len(recent) // 2]
            now_ms = self.used.get(source, {}).get(to, self.given(source, to))
            sure = len(recent) > ROUND_TRIPS_KEPT // 2
            if sure and abs(middle - now_ms) > max(ROUND_TRIP_OFF * now_ms, ROUND_TRIP_OFF_MS):
                # Never changed in place: decisions that are under way hold the old ones.
                self.used = {**self.used, source: {**self.used.get(source, {}), to: middle}}
                changed = True
        return changed
