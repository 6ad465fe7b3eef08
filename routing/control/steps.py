"""Hysteresis and the largest step: how far a published table goes towards the planned one."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, float]
"""Shares of one source's requests, by destination; they sum to 1. Shares of 0 are left out."""
Shares = Mapping[str, Row]

DUST = 1e-9
"""Shares below it are rounding, not traffic."""


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
    return part, {
        source: _between(row, targets[source], part) if source in targets else dict(row) for source, row in rows.items()
    }


def _between(row: Row, target: Row, part: float) -> dict[str, float]:
    if part >= 1.0:
        return dict(target)
    mixed = {to: row.get(to, 0.0) + part * (target.get(to, 0.0) - row.get(to, 0.0)) for to in {**row, **target}}
    kept = {to: share for to, share in mixed.items() if share > DUST}
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
    return {to: share for to, share in found.items() if share > DUST}
