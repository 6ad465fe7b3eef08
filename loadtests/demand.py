"""Arrivals per second of each region over time: a scenario and a fleet, put together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laboratory.simulate.scenario import Change, Day
from routing.errors import InputError
from routing.fleet import Fleet

from .roles import Roles, regions
from .scenario import Demand, Herd, Level, Scenario
from .timed import Timed

Floats = NDArray[np.float64]
MOST_REQUESTS = 5_000_000
"""Of one load test: they are drawn before it begins, and take a hundred bytes each."""
LONGEST_S = 7 * 86_400.0


@dataclass(frozen=True)
class Rate:
    """Requests per second of one region.

    Attributes:
        base: before days and changes.
        changes: of this region, in seconds of the run.
        day: the curve, or None.
        day_s: of the run, that it takes.
        utc_offset: of the region, in hours.
        duration_s: of the run.
    """

    base: float
    changes: tuple[Change, ...]
    day: Day | None
    day_s: float
    utc_offset: float
    duration_s: float

    def at(self, times: Floats) -> Floats:
        """At some times, in s from the start."""
        found = np.full(len(times), self.base)
        if self.day is not None:
            hours = self.day.starts_at + self.utc_offset + times * (24 / self.day_s)
            # As `laboratory.simulate.demand.day_curve` has it, with a day of any length.
            phase = (1 + np.cos((hours - self.day.peak_hour) * (math.pi / 12))) / 2
            found *= self.day.trough + (1 - self.day.trough) * phase
        for one in self.changes:
            found[(times >= one.at_s) & (times < (one.until_s or self.duration_s))] *= one.factor
        return found

    @property
    def bound(self) -> float:
        """Never more than this."""
        highest = self.base
        for one in self.changes:
            highest *= max(1.0, one.factor)
        return highest


def level(demand: Demand, fleet: Fleet) -> float:
    """Demand as a share of what a region can compute."""
    if not isinstance(demand, Level):
        return demand
    marks = [0.0, *(one.load for one in fleet.thresholds), max(1.0, fleet.thresholds[-1].load)]
    at = min(demand.threshold, len(marks) - 2)
    return marks[at] + demand.part * (marks[at + 1] - marks[at])


def rates(scenario: Scenario, fleet: Fleet, roles: Roles, timed: Timed) -> dict[str, Rate]:
    """Of each region.

    Raises:
        InputError: a region or role is not there, or more is asked for than one load test sends; with the key.
    """
    traffic, seconds = scenario.traffic, timed(scenario.duration_s)
    if seconds > LONGEST_S:
        raise InputError(f"the run would take {seconds:g} s, and {LONGEST_S:g} s is the most", key="duration_s")
    loads = dict.fromkeys(fleet.names, level(traffic.load, fleet))
    for name, demand in traffic.region_load.items():
        for region in regions(roles, name, f"traffic.region_load.{name}"):
            loads[region] = level(demand, fleet)
    changes: dict[str, list[Change]] = {name: [] for name in fleet.names}
    for i, one in enumerate(traffic.changes):
        until_s = None if one.until_s is None else timed(one.until_s)
        change = Change(at_s=timed(one.at_s), until_s=until_s, factor=one.factor)
        for name in one.regions or fleet.names:
            for region in regions(roles, name, f"traffic.changes.{i}.regions"):
                changes[region].append(change)
    found = {
        name: Rate(
            loads[name] * fleet.capacity_rps(name),
            tuple(changes[name]),
            traffic.day,
            timed(traffic.day_s),
            _utc_offset(traffic.day, fleet, i),
            seconds,
        )
        for i, name in enumerate(fleet.names)
    }
    _check_count(sum(rate.bound for rate in found.values()) * seconds, "traffic.load")
    return found


def herds(scenario: Scenario, fleet: Fleet, roles: Roles, timed: Timed) -> dict[str, list[float]]:
    """Times of the jobs that come together, by region.

    Raises:
        InputError: as `rates`.
    """
    found: dict[str, list[float]] = {name: [] for name in fleet.names}
    count = 0
    where: list[tuple[Herd, str, int]] = []
    for i, herd in enumerate(scenario.traffic.herds):
        for region in regions(roles, herd.region, f"traffic.herds.{i}.region"):
            jobs = round(herd.jobs_per_gpu * fleet.regions[region].gpus)
            count += jobs
            _check_count(count, f"traffic.herds.{i}.jobs_per_gpu")
            where.append((herd, region, jobs))
    for herd, region, jobs in where:
        found[region] += [timed(herd.at_s) + timed(herd.over_s) * k / jobs for k in range(jobs)]
    return found


def _check_count(requests: float, key: str) -> None:
    if requests > MOST_REQUESTS:
        text = f"makes up to {requests:.3g} requests, and a load test sends {MOST_REQUESTS:,} at most"
        raise InputError(text, key=key)


def _utc_offset(day: Day | None, fleet: Fleet, number: int) -> float:
    if day is None:
        return 0.0
    name = fleet.names[number]
    longitude = fleet.regions[name].longitude
    # Without either, regions are spread over the day: that they peak together would be no day of a world.
    spread = 24.0 * number / len(fleet.names)
    return day.utc_offset.get(name, spread if longitude is None else longitude / 15)
