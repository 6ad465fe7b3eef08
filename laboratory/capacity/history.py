"""Traffic of the past: requests by time and region, from CSV or Parquet, with each value checked.

What can be mended without guessing is, and each kind of it is named in the report. What cannot is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from routing.errors import InputError
from routing.fleet import Fleet
from routing.schema import MOST, did_you_mean

from ..columns import Column, Columns, read_columns

COLUMNS = ("time", "region", "requests")
MOST_MISSING = 0.2
"""Share of a region's intervals that may be missing; with more, what is there may not be typical."""
SHORTEST_S = 86_400.0
FIRST_YEAR, LAST_YEAR = 1970, 2099
_HOUR_S = 3600.0
_EPOCH = datetime.fromtimestamp(0, UTC)
_MICROSECOND = timedelta(microseconds=1)
Number = TypeVar("Number", np.int64, np.float64)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}")


@dataclass(frozen=True)
class History:
    """Requests per second by interval and region.

    Attributes:
        start: of the first interval, UTC.
        interval_s: of all.
        rps: (intervals, regions), in the order of the fleet; NaN where nothing is known.
        repairs: what was mended, for people.
    """

    start: datetime
    interval_s: float
    rps: NDArray[np.float64]
    repairs: tuple[str, ...]

    @property
    def days(self) -> float:
        """How long it is."""
        return len(self.rps) * self.interval_s / 86_400

    def times(self) -> list[datetime]:
        """Starts of the intervals, UTC."""
        return [self.start + timedelta(seconds=i * self.interval_s) for i in range(len(self.rps))]


def read_history(path: Path, fleet: Fleet, zone: str | None = None) -> History:
    """Read a history.

    Args:
        path: of a CSV or Parquet file with the columns `time` (ISO 8601, with its zone: the start of an interval),
            `region` and `requests` (in the interval).
        fleet: whose regions they are.
        zone: of times that have none; None: such times are an error.

    Raises:
        InputError: with the line, where it is one.
        RoutingError: pyarrow is not installed.
    """
    try:
        columns = read_columns(path, COLUMNS, "a history has time, region and requests")
        if not len(columns):
            raise InputError("has no rows")
        return _History(columns, fleet, zone).read()
    except InputError as error:
        raise error.within(path) from None


class _History:
    """One history as it is read."""

    def __init__(self, columns: Columns, fleet: Fleet, zone: str | None) -> None:
        self._columns, self._fleet = columns, fleet
        self._zone_name, self._zone = zone, None if zone is None else ZoneInfo(zone)
        self._repairs: list[str] = []
        self._offsets: set[timedelta | None] = set()
        self._naive = False

    def read(self) -> History:
        times = self._numbers("time", self._time, np.int64)
        regions = self._numbers("region", self._region, np.int64)
        requests = self._numbers("requests", _count, np.float64)
        _check_thousands(self._columns.columns["requests"])
        self._say_zones()
        moments, moment_of = np.unique(times, return_inverse=True)
        start, interval, places = self._grid(moments, moment_of)
        cell_of = places[moment_of] * len(self._fleet.names) + regions
        first = self._without_repetition(cell_of, requests)
        rps = np.full((int(places[-1]) + 1, len(self._fleet.names)), math.nan)
        rps.flat[cell_of[first]] = requests[first] / interval
        if not np.nansum(rps) > 0:
            raise InputError("has no requests at all")
        self._say_gaps(rps)
        return History(start, interval, rps, tuple(self._repairs))

    def _numbers(self, name: str, parse: Callable[[Any], float], kind: type[Number]) -> NDArray[Number]:
        """(rows,) of a column."""
        values, codes = self._columns.parsed(name, parse)
        return np.array(values, dtype=kind)[codes]

    def _time(self, value: Any) -> int:
        """Microseconds since 1970, UTC."""
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(_time_text(value))
        except ValueError:
            raise InputError(f"time is no ISO 8601 time such as 2025-01-31T12:00:00+00:00: {value}") from None
        if not FIRST_YEAR <= time.year <= LAST_YEAR:  # before any sum with an offset, which may overflow
            raise InputError(f"time is {value}, and not in the years {FIRST_YEAR} to {LAST_YEAR}")
        if time.tzinfo is None:
            if self._zone is None:
                raise InputError(f"{value} has no time zone; write one into the file, or name it as `zone`")
            self._naive = True
            time = _local(time, self._zone)
        else:
            self._offsets.add(time.utcoffset())
        return (time - _EPOCH) // _MICROSECOND

    def _region(self, value: Any) -> int:
        try:
            return self._fleet.names.index(value)
        except ValueError:
            hint = did_you_mean(str(value), self._fleet.regions)
            raise InputError(f"{value} is none of the fleet's regions{hint}") from None

    def _say_zones(self) -> None:
        if self._naive and self._offsets:
            raise InputError("some times have a zone and some have none; give all of them one")
        if self._naive:
            self._repairs.append(f"times without a zone were taken as {self._zone_name}")
        if len(self._offsets) > 1:
            self._repairs.append(f"times have {len(self._offsets)} different offsets from UTC; all were put into UTC")

    def _grid(
        self, moments: NDArray[np.int64], moment_of: NDArray[np.int64]
    ) -> tuple[datetime, float, NDArray[np.int64]]:
        """The first time, the interval in s, and (moments,) which interval each moment begins."""
        if len(moments) < 2:
            raise InputError("has one interval only; a day is the least")
        steps = np.diff(moments)
        nearest = int(steps.argmin())
        interval = int(steps[nearest])
        after = moments - moments[0]
        count = round(int(after[-1]) / interval) + 1
        seconds = interval / 1e6
        exact = after / interval
        places = np.rint(exact).astype(np.int64)
        uneven = np.abs(exact - places) > 1e-6
        if uneven.any():
            row = int(np.argmax(uneven[moment_of]))
            time = _iso(moments[moment_of[row]])
            text = f"{self._columns.where(row)}: {time} is no multiple of {seconds:g} s after the first time"
            raise InputError(f"{text}; intervals should be equal")
        if seconds > _HOUR_S:
            raise InputError(f"has intervals of {seconds / _HOUR_S:g} hours; an hour is the most, for peaks to show")
        if count * seconds < SHORTEST_S:
            raise InputError(f"covers {count * seconds / _HOUR_S:.1f} hours; a day is the least")
        # Before memory is taken for all intervals: two rows a moment apart would make millions of them.
        if count - len(moments) > MOST_MISSING * count:
            row = int(np.argmax(moment_of == nearest + 1))
            text = f"{self._columns.where(row)}: {_iso(moments[nearest + 1])} is {seconds:g} s after another time"
            missing = f"{count - len(moments)} of {count} intervals of that length are missing"
            raise InputError(f"{text}, and {missing}; {100 * MOST_MISSING:g} % is the most")
        return _EPOCH + int(moments[0]) * _MICROSECOND, seconds, places

    def _without_repetition(self, cell_of: NDArray[np.int64], requests: NDArray[np.float64]) -> NDArray[np.int64]:
        """The first row of each time and region."""
        _, first, cell = np.unique(cell_of, return_index=True, return_inverse=True)
        if twice := len(cell_of) - len(first):
            other = requests != requests[first[cell]]
            if other.any():
                row = int(np.argmax(other))
                before = int(first[cell[row]])
                time, name = self._shown("time", row), self._shown("region", row)
                text = f"{name} at {time} is there twice, with {requests[before]:g} requests"
                where = self._columns.where(row), self._columns.where(before)
                raise InputError(f"{where[0]}: {text} in {where[1]} and {requests[row]:g} here")
            self._repairs.append(f"{twice} rows were there twice with the same requests; each counts once")
        return first

    def _shown(self, name: str, row: int) -> Any:
        column = self._columns.columns[name]
        return column.values[column.codes[row]]

    def _say_gaps(self, rps: NDArray[np.float64]) -> None:
        for i, name in enumerate(self._fleet.names):
            missing = int(np.isnan(rps[:, i]).sum())
            if missing == len(rps):
                self._repairs.append(f"{name} has no rows: it is planned without users")
                rps[:, i] = 0.0
            elif missing > MOST_MISSING * len(rps):
                share = f"{missing} of {len(rps)} intervals"
                raise InputError(f"{name}: {share} are missing; {100 * MOST_MISSING:g} % is the most")
            elif missing:
                text = f"{missing} of {len(rps)} intervals are missing and taken from the same time of other days"
                self._repairs.append(f"{name}: {text}")


def _iso(moment: np.int64) -> str:
    return (_EPOCH + int(moment) * _MICROSECOND).isoformat()


def _time_text(value: Any) -> str:
    """Text of a time. A number is none, though some look like ISO 8601 without its hyphens."""
    return str(value).strip() if isinstance(value, str | date) else ""


def _local(time: datetime, zone: ZoneInfo) -> datetime:
    early, late = time.replace(tzinfo=zone, fold=0), time.replace(tzinfo=zone, fold=1)
    if early.utcoffset() == late.utcoffset():
        return early.astimezone(UTC)
    # When clocks are put back an hour comes twice, and when they are put forward one does not come at all.
    there = early.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == time
    what = "comes twice" if there else "does not exist"
    raise InputError(f"{time.isoformat()} {what} in {zone.key}, where clocks are changed; give times in UTC")


def _count(value: Any) -> float:
    try:
        requests = float(value)
    except (TypeError, ValueError):
        raise InputError(f"requests is no number: {value}") from None
    if not math.isfinite(requests):
        raise InputError(f"requests is {value}; leave rows out of which nothing is known")
    if requests < 0:
        raise InputError(f"requests is {value}, below 0")
    if requests > MOST:
        raise InputError(f"requests is {value}, above {MOST:g}")
    return requests


def _check_thousands(column: Column) -> None:
    """Refuse numbers that may be thousands: 10.060 beside 998, where a point never has other than three digits after
    it and small numbers have no point.
    """
    texts = [value.strip() for value in column.values if isinstance(value, str)]
    points = [text for text in texts if "." in text]
    if points and len(points) < len(texts) and all(_THOUSANDS.fullmatch(text) for text in points):
        text = f"requests such as {points[0]} may be a fraction or have a point between thousands"
        raise InputError(f"{text}; write whole numbers without points, or all with as many digits after the point")
