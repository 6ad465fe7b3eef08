"""The week that capacity is planned for: the history's, hour by hour, grown and with what is to come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError
from routing.fleet import Fleet

from .history import History
from .settings import DAYS, Launch, Planning

HOURS = 168
_HOURS_BEFORE_1970 = 72  # from Monday on: its first day was a Thursday
_SOME_MONDAY = datetime(2025, 1, 6, tzinfo=UTC)


@dataclass(frozen=True)
class Week:
    """Demand by hour of the week, from Monday 0 h UTC.

    Attributes:
        names: regions, in the order of the fleet.
        rps: (168, regions), requests per second, the highest of each hour.
        mean_rps: (regions,), over the week.
        past_rps: (168, regions), without growth and launches.
        notes: how it was made, for people.
    """

    names: tuple[str, ...]
    rps: NDArray[np.float64]
    mean_rps: NDArray[np.float64]
    past_rps: NDArray[np.float64]
    notes: tuple[str, ...]

    def peak(self, region: int) -> tuple[float, int]:
        """A region's highest demand, and its hour of the week."""
        hour = int(self.rps[:, region].argmax())
        return float(self.rps[hour, region]), hour


def hour_name(hour: int) -> str:
    """`Mon 07 h UTC` for hour 7."""
    return f"{DAYS[hour // 24][:3].title()} {hour % 24:02d} h UTC"


def planned_week(history: History, fleet: Fleet, planning: Planning) -> Week:
    """Make the week.

    For each hour of the week and each region: the highest interval within the hour, then the quantile `peak` of
    that over the weeks, times `peak_within`, `growth` and the launches of that hour. An hour that the history
    does not have is as the same hour of its other days.

    Raises:
        InputError: the history has hours of which nothing is known.
    """
    hours, means = _by_hour(history)
    notes = [f"{history.days:.1f} days of history in intervals of {history.interval_s / 60:g} minutes"]
    weeks = max(1, round(history.days / 7))
    how = "highest" if planning.peak >= 1 else f"{100 * planning.peak:g} % quantile"
    notes.append(f"demand of an hour of the week: the {how} of {weeks} weeks" if weeks > 1 else "one week, as it was")
    past = np.full((HOURS, len(fleet.names)), np.nan)
    for (hour, region), values in hours.items():
        past[hour, region] = np.quantile(values, planning.peak)
    filled = int(np.isnan(past).any(axis=1).sum())
    _fill(past, fleet)
    if filled:
        notes.append(f"{filled} of 168 hours are not in the history: as the same hour of its other days")
    factor = _launch_factors(planning.launches, fleet)
    rps = past * planning.peak_within * planning.growth * factor
    return Week(fleet.names, rps, means * planning.growth, past, tuple(notes))


def _by_hour(history: History) -> tuple[dict[tuple[int, int], list[float]], NDArray[np.float64]]:
    """Highest demand of each hour that there was, by (hour of the week, region); and the mean of all by region."""
    start_s = history.start.timestamp()
    hours = np.floor((start_s + history.interval_s * np.arange(len(history.rps))) / 3600 + 1e-9).astype(np.int64)
    first = np.flatnonzero(np.diff(hours, prepend=hours[0] - 1))  # interval of each hour
    highest = np.fmax.reduceat(history.rps, first, axis=0)
    found: dict[tuple[int, int], list[float]] = {}
    for hour, row in zip((hours[first] + _HOURS_BEFORE_1970).tolist(), highest.tolist(), strict=True):
        for region, rps in enumerate(row):
            if not math.isnan(rps):
                found.setdefault((hour % HOURS, region), []).append(rps)
    return found, np.nanmean(history.rps, axis=0)


def _fill(past: NDArray[np.float64], fleet: Fleet) -> None:
    """Hours that are not known: the highest of the same hour on other days."""
    for region, name in enumerate(fleet.names):
        for hour in range(HOURS):
            if np.isnan(past[hour, region]):
                others = past[hour % 24 :: 24, region]
                if np.isnan(others).all():
                    raise InputError(f"{name}: nothing is known of {hour % 24:02d} h UTC on any day")
                past[hour, region] = np.nanmax(others)


def _launch_factors(launches: tuple[Launch, ...], fleet: Fleet) -> NDArray[np.float64]:
    """(168, regions); launches at one time multiply."""
    factor = np.ones((HOURS, len(fleet.names)))
    for launch in launches:
        monday = _SOME_MONDAY.replace(tzinfo=ZoneInfo(launch.zone))
        start = monday + timedelta(days=DAYS.index(launch.day), hours=launch.from_hour)
        first = (start.astimezone(UTC) - _SOME_MONDAY).total_seconds() / 3600
        hours = [int(np.floor(first + i)) % HOURS for i in range(int(np.ceil(launch.hours)))]
        if first % 1 or launch.hours % 1:  # a part of an hour has the whole hour's peak
            hours.append(int(np.floor(first + launch.hours - 1e-9)) % HOURS)
        where = [i for i, name in enumerate(fleet.names) if not launch.regions or name in launch.regions]
        factor[np.ix_(sorted(set(hours)), where)] *= launch.factor
    return factor
