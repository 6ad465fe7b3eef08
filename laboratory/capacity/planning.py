"""What capacity is planned for (`capacity.yaml`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from routing.errors import InputError
from routing.files import read_yaml
from routing.fleet import Fleet
from routing.schema import Count, Items, Number, Positive, RegionName, Share, Strict, did_you_mean, validated, wrong

from .history import History


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PydanticCustomError("zone", "should be a time zone such as Europe/Berlin or UTC") from None
    return name


ZoneName = Annotated[str, AfterValidator(_zone)]
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


class Launch(Strict):
    """Hours of the week in which demand is times a factor: a launch, a campaign, a match.

    Attributes:
        name: for people.
        factor: of the demand.
        day: of the week, in the zone.
        from_hour: at which it begins.
        hours: how long it lasts; it may go over midnight.
        zone: whose clock that is; one moment for all regions.
        regions: whose demand; none: of all.
    """

    name: Annotated[str, Field(min_length=1)]
    factor: Positive
    day: Day
    from_hour: Annotated[Number, Field(lt=24)]
    hours: Annotated[Positive, Field(le=168)]
    zone: ZoneName = "UTC"
    regions: Annotated[tuple[RegionName, ...], Items] = ()


class Goal(Strict):
    """What users are to get.

    Attributes:
        blocking: share of the requests of a region's busiest interval that may find no free GPU at first, and wait
            and try again.
        blocking_in_loss: the same while a region is lost, which may last hours.
        failures: share that may fail after all retries; the simulator is asked, and the answer is in the report.
        lose_a_region: whether the others are to carry the traffic of any one region that is lost.
    """

    blocking: Annotated[Share, Field(gt=0, lt=1)] = 0.01
    blocking_in_loss: Annotated[Share, Field(gt=0, lt=1)] = 0.05
    failures: Annotated[Share, Field(gt=0)] = 0.001
    lose_a_region: bool = True

    @model_validator(mode="after")
    def _loss_is_no_stricter(self) -> Self:
        if self.blocking_in_loss < self.blocking:
            raise wrong("blocking_in_loss", f"{self.blocking_in_loss:g} is below blocking ({self.blocking:g})")
        return self


class Prices(Strict):
    """What GPUs cost.

    Attributes:
        currency: of all prices.
        gpu_hour: price of a GPU server for an hour.
        regions: where it is another.
    """

    currency: Annotated[str, Field(min_length=1, max_length=12)] = "USD"
    gpu_hour: Positive = 2.0
    regions: Mapping[RegionName, Positive] = {}

    def of(self, region: str) -> float:
        """Price of an hour there."""
        return self.regions.get(region, self.gpu_hour)


class Planning(Strict):
    """What capacity is planned for. All that it leaves out is an assumption that the report names.

    Attributes:
        name: for people.
        growth: demand of then over demand of the history.
        launches: on top.
        forecast_weeks: for which week after the history demand is forecast, beside the plan; 0: none.
        peak: quantile, over the weeks of the history, of the demand at one time of the week; 1 is the highest.
        peak_within: highest demand within an interval of the history over its mean.
        zone: of times in the history that have none; None: such times are an error.
        model: that the benchmark must be of; None: any.
        rung: of the benchmark; None: the last that was kept.
        service_time_factor: service time in production over that of the benchmark.
        goal: for users.
        margin: GPUs on top, as a share: those that are down for maintenance, or slow.
        prices: of GPUs.
    """

    name: Annotated[str, Field(min_length=1)] = "as it was"
    growth: Positive = 1.0
    launches: Annotated[tuple[Launch, ...], Items] = ()
    forecast_weeks: Annotated[Count, Field(le=104)] = 4
    peak: Annotated[Share, Field(ge=0.5)] = 1.0
    peak_within: Annotated[Positive, Field(ge=1)] = 1.1
    zone: ZoneName | None = None
    model: str | None = None
    rung: str | None = None
    service_time_factor: Positive = 1.0
    goal: Goal = Goal()
    margin: Annotated[Share, Field(lt=1)] = 0.05
    prices: Prices = Prices()

    def check(self, fleet: Fleet) -> None:
        """See that it is of this fleet.

        Raises:
            InputError: with the key.
        """
        named = [(f"launches.{i}.regions", name) for i, one in enumerate(self.launches) for name in one.regions]
        named += [("prices.regions", name) for name in self.prices.regions]
        for key, name in named:
            if name not in fleet.regions:
                raise InputError(f"{name} is none of the fleet's regions{did_you_mean(name, fleet.regions)}", key=key)


def load_planning(path: Path | None, fleet: Fleet) -> Planning:
    """Read what capacity is planned for; without a file, all is assumed.

    Raises:
        InputError: with the file and the key.
    """
    if path is None:
        return Planning()
    content = read_yaml(path)
    try:
        planning = validated(Planning, content)
        planning.check(fleet)
    except InputError as error:
        raise error.within(path) from None
    return planning


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
    factor = launch_factors(planning.launches, fleet)
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


def launch_factors(launches: tuple[Launch, ...], fleet: Fleet) -> NDArray[np.float64]:
    """Return (168, regions); launches at one time multiply."""
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
