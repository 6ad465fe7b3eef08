"""Demand of a load test: its traffic as the simulator's, with regions for roles and requests for thresholds."""

from __future__ import annotations

from laboratory.arrivals import Arrival, Floats, Rates
from laboratory.simulate.demand import given_times, rates
from laboratory.simulate.scenario import Arrivals, Burst, Change, Day
from routing.errors import InputError
from routing.fleet import Fleet

from .replay import arrivals
from .roles import Roles, regions
from .scenario import Demand, Level, Scenario, Traffic
from .timed import Timed

MOST_REQUESTS, MOST_TOGETHER = 5_000_000, 1_000_000
"""Of one load test, and of one herd: they are drawn before it begins, and take a hundred bytes each."""
LONGEST_S = 7 * 86_400.0


def level(demand: Demand, fleet: Fleet) -> float:
    """Demand as a share of what a region can compute."""
    if not isinstance(demand, Level):
        return demand
    marks = [0.0, *(one.load for one in fleet.thresholds), max(1.0, fleet.thresholds[-1].load)]
    at = min(demand.threshold, len(marks) - 2)
    return marks[at] + demand.part * (marks[at + 1] - marks[at])


def demand(scenario: Scenario, fleet: Fleet, roles: Roles, timed: Timed) -> tuple[dict[str, Rates], dict[str, Floats]]:
    """Return rates over time, and times of jobs that come together, by region.

    Raises:
        InputError: a region or role is not there, or more is asked for than one load test sends; with the key.
    """
    seconds = timed(scenario.duration_s)
    if seconds > LONGEST_S:
        raise InputError(f"the run would take {seconds:g} s, and {LONGEST_S:g} s is the most", key="duration_s")
    given = in_simulator(scenario.traffic, fleet, roles, timed)
    found = rates(given, fleet, seconds, fleet.service_time_s)
    _check(sum(one.count for one in found.values()), MOST_REQUESTS, "traffic.load")
    return found, given_times(given, (), seconds)


def in_simulator(traffic: Traffic, fleet: Fleet, roles: Roles, timed: Timed) -> Arrivals:
    """Return a load test's traffic as a scenario of `routing simulate` has it.

    Raises:
        InputError: as `demand`.
    """
    loads = {
        region: level(wanted, fleet)
        for name, wanted in traffic.region_load.items()
        for region in regions(roles, name, f"traffic.region_load.{name}")
    }
    changes = [
        Change(
            at_s=timed(one.at_s),
            until_s=None if one.until_s is None else timed(one.until_s),
            factor=one.factor,
            regions=tuple(region for name in one.regions for region in regions(roles, name, f"traffic.changes.{i}")),
        )
        for i, one in enumerate(traffic.changes)
    ]
    bursts, together = [], 0
    for i, herd in enumerate(traffic.herds):
        for region in regions(roles, herd.region, f"traffic.herds.{i}.region"):
            jobs = round(herd.jobs_per_gpu * fleet.regions[region].gpus)
            together += jobs
            for count, most in ((together, MOST_REQUESTS), (jobs, MOST_TOGETHER)):
                _check(count, most, f"traffic.herds.{i}.jobs_per_gpu")
            if jobs:
                bursts.append(Burst(at_s=timed(herd.at_s), region=region, jobs=jobs, over_s=timed(herd.over_s)))
    return Arrivals(
        load=level(traffic.load, fleet),
        region_load=loads,
        day=None if traffic.day is None else _day(traffic.day, timed(traffic.day_s), fleet),
        changes=tuple(changes),
        bursts=tuple(bursts),
    )


def recorded(scenario: Scenario, fleet: Fleet, timed: Timed) -> list[Arrival]:
    """Return what a scenario replays, in order of time.

    Raises:
        InputError: a log cannot be used, or there is more in it than one load test sends.
    """
    if scenario.traffic.replay is None:
        return []
    found = arrivals(scenario.traffic.replay, fleet, scenario.duration_s, timed)
    _check(len(found), MOST_REQUESTS, "traffic.replay.logs")
    return found


def _check(requests: float, most: int, key: str) -> None:
    if requests > most:
        raise InputError(f"makes up to {requests:.3g} requests, and a load test sends {most:,} at most", key=key)


def _day(day: Day, length_s: float, fleet: Fleet) -> Day:
    """Return the day, with an hour for regions without longitude: spread over it, since a world has no one hour."""
    spread = {
        name: (24.0 * i / len(fleet.names) + 12) % 24 - 12
        for i, (name, region) in enumerate(fleet.regions.items())
        if region.longitude is None
    }
    return day.model_copy(update={"length_s": length_s, "utc_offset": {**spread, **day.utc_offset}})
