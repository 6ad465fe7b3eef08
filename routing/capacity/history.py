"""Traffic of the past: requests by time and region, from CSV or Parquet, checked row by row.

What can be mended without guessing is, and each kind of it is named in the report. What cannot is an error.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RoutingError
from ..fleet import Fleet
from ..schema import MOST, did_you_mean

COLUMNS = ("time", "region", "requests")
MOST_MISSING = 0.2
"""Share of a region's intervals that may be missing; with more, what is there may not be typical."""
SHORTEST_S = 86_400.0
_HOUR_S = 3600.0


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


@dataclass(frozen=True)
class _Row:
    where: str
    time: datetime
    region: str
    requests: float


def read_history(path: Path, fleet: Fleet, zone: str | None = None) -> History:
    """Read a history.

    Args:
        path: of a CSV or Parquet file with the columns `time` (ISO 8601, with its zone: the start of an interval),
            `region` and `requests` (in the interval).
        fleet: whose regions they are.
        zone: of times that have none; None: such times are an error.

    Raises:
        InputError: with the line, where it is one.
        RoutingError: Parquet without pyarrow.
    """
    try:
        return _History(fleet, zone).read(_rows(path))
    except InputError as error:
        raise error.within(path) from None


def _rows(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """(where, time, region, requests) as the file has them."""
    if not path.is_file():
        raise InputError("no such file" if not path.exists() else "is no file")
    return _parquet(path) if path.suffix == ".parquet" else _csv(path)


def _csv(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            _check_columns(rows.fieldnames or ())
            for row in rows:
                yield f"line {rows.line_num}", row["time"], row["region"], row["requests"]
    except UnicodeDecodeError as error:
        raise InputError(f"is no UTF-8 text (byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise RoutingError("Parquet needs pyarrow: pip install pyarrow, or give a CSV") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"is no Parquet that can be read: {' '.join(str(error).split())[:200]}") from None
    _check_columns(table.column_names)
    columns = [table.column(name).to_pylist() for name in COLUMNS]
    for i, row in enumerate(zip(*columns, strict=True), start=1):
        yield (f"row {i}", *row)


def _check_columns(names: Any) -> None:
    for name in COLUMNS:
        if name not in names:
            hint = did_you_mean(name, names) if names else ""
            raise InputError(f"has no column {name}{hint}; a history has time, region and requests")


class _History:
    """One history as it is read."""

    def __init__(self, fleet: Fleet, zone: str | None) -> None:
        self._fleet, self._zone = fleet, None if zone is None else ZoneInfo(zone)
        self._zone_name = zone
        self._repairs: list[str] = []
        self._offsets: set[timedelta | None] = set()
        self._naive = 0

    def read(self, rows: Iterator[tuple[str, Any, Any, Any]]) -> History:
        found: dict[tuple[datetime, str], _Row] = {}
        twice = 0
        for where, time, region, requests in rows:
            row = _Row(where, self._time(where, time), self._region(where, region), _count(where, requests))
            before = found.setdefault((row.time, row.region), row)
            if before is not row:
                twice += 1
                if before.requests != row.requests:
                    text = f"{row.region} at {row.time.isoformat()} is there twice, with {before.requests:g} requests"
                    raise InputError(f"{where}: {text} in {before.where} and {row.requests:g} here")
        if not found:
            raise InputError("has no rows")
        if twice:
            self._repairs.append(f"{twice} rows were there twice with the same requests; each counts once")
        self._say_zones()
        return self._gridded(list(found.values()))

    def _time(self, where: str, value: Any) -> datetime:
        try:
            time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        except ValueError:
            text = f"{where}: time is no ISO 8601 time such as 2025-01-31T12:00:00+00:00: {value}"
            raise InputError(text) from None
        if time.tzinfo is None:
            if self._zone is None:
                text = f"{where}: {value} has no time zone; write one into the file, or name it as `zone`"
                raise InputError(text)
            self._naive += 1
            time = self._local(where, time, self._zone)
        else:
            self._offsets.add(time.utcoffset())
        return time.astimezone(UTC)

    def _local(self, where: str, time: datetime, zone: ZoneInfo) -> datetime:
        early, late = time.replace(tzinfo=zone, fold=0), time.replace(tzinfo=zone, fold=1)
        if early.utcoffset() == late.utcoffset():
            return early
        # When clocks are put back an hour comes twice, and when they are put forward one does not come at all.
        there = early.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == time
        what = "comes twice" if there else "does not exist"
        text = f"{where}: {time.isoformat()} {what} in {zone.key}, where clocks are changed; give times in UTC"
        raise InputError(text)

    def _region(self, where: str, value: Any) -> str:
        if value not in self._fleet.regions:
            hint = did_you_mean(str(value), self._fleet.regions)
            raise InputError(f"{where}: {value} is none of the fleet's regions{hint}")
        return str(value)

    def _say_zones(self) -> None:
        if self._naive and self._offsets:
            text = "some times have a zone and some have none; give all of them one"
            raise InputError(text)
        if self._naive:
            self._repairs.append(f"times without a zone were taken as {self._zone_name}")
        if len(self._offsets) > 1:
            self._repairs.append(f"times have {len(self._offsets)} different offsets from UTC; all were put into UTC")

    def _gridded(self, rows: list[_Row]) -> History:
        times = sorted({row.time for row in rows})
        if len(times) < 2:
            raise InputError("has one interval only; a day is the least")
        steps = [(b - a).total_seconds() for a, b in pairwise(times)]
        interval = min(steps)
        start = times[0]
        count = round((times[-1] - start).total_seconds() / interval) + 1
        for row in rows:
            at = (row.time - start).total_seconds() / interval
            if abs(at - round(at)) > 1e-6:
                text = f"{row.where}: {row.time.isoformat()} is no multiple of {interval:g} s after the first time"
                raise InputError(f"{text}; intervals should be equal")
        if interval > _HOUR_S:
            raise InputError(f"has intervals of {interval / _HOUR_S:g} hours; an hour is the most, for peaks to show")
        if count * interval < SHORTEST_S:
            raise InputError(f"covers {count * interval / _HOUR_S:.1f} hours; a day is the least")
        names = self._fleet.names
        rps = np.full((count, len(names)), math.nan)
        for row in rows:
            at = round((row.time - start).total_seconds() / interval)
            rps[at, names.index(row.region)] = row.requests / interval
        if not np.nansum(rps) > 0:
            raise InputError("has no requests at all")
        self._say_gaps(rps)
        return History(start, interval, rps, tuple(self._repairs))

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


def _count(where: str, value: Any) -> float:
    try:
        requests = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: requests is no number: {value}") from None
    if not math.isfinite(requests):
        raise InputError(f"{where}: requests is {value}; leave rows out of which nothing is known")
    if requests < 0:
        raise InputError(f"{where}: requests is {value}, below 0")
    if requests > MOST:
        raise InputError(f"{where}: requests is {value}, above {MOST:g}")
    return requests
